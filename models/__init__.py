"""Encoders, heads, objectives, and SimMIM itself."""

from models.build import build_classifier, build_pretrain_model

__all__ = ["build_classifier", "build_pretrain_model"]
