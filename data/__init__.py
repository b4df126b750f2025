"""Pictures, augmentation, masks and loaders."""

from data.build import build_pretrain_dataset, build_pretrain_loader

__all__ = ["build_pretrain_dataset", "build_pretrain_loader"]
