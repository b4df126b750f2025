"""Encoders, heads, objectives, and SimMIM itself."""

from models.build import (
    build_classifier,
    build_criterion,
    build_pretrain_model,
    load_classifier,
    load_simmim,
    stored_config,
    target_file,
)
from models.pretrained import load_pretrained
