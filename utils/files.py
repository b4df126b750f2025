"""Files that outlive a crash."""

import os
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Flush a folder's names to the disk: a file that was renamed in it keeps its new name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
