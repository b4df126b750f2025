"""The configuration: its keys, the files and flags that set them, and their possible values."""

from utils.config.reading import (
    config_of,
    get_config,
    is_finetuning,
    keys_below,
    keys_like,
    read_recipe,
    stage_of,
    to_plain,
    with_options,
)
