"""Pictures, augmentation, masks and loaders."""

from data.build import (
    build_batch_augmentation,
    build_eval_dataset,
    build_eval_loader,
    build_mask,
    build_pretrain_dataset,
    build_train_dataset,
    build_train_loader,
)
