"""Tokens of a given image tokenizer as a target, as BEiT predicts them (section 4.1.3)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.color_targets import Colors
from utils.messages import reason_of, require_divisible, shown

_KEYS = "MODEL.SIMMIM.TOKENS"
_INTEGERS = ("tensor(int64)", "tensor(int32)", "tensor(uint8)", "tensor(uint16)")


class TokenTarget(nn.Module):
    """Ids that a tokenizer, an ONNX file, gives to patches: images -> integers (B, h, w).

    `vocabulary` is the number of ids, `patch_size` the pixels of the image along a token's side.
    The tokenizer gets images shrunk by `shrink`, with `value_range` as lowest and highest number.
    It runs on the CPU: on a GPU every update waits for it, once. ValueError where the file cannot
    be run on an image of `image_size` (height, width), or gives other ids.
    """

    not_drawn = "the target tokens is no picture: its predictions cannot be drawn"

    def __init__(
        self,
        path: str,
        vocabulary: int,
        patch_size: int,
        shrink: int,
        value_range: Sequence[float],
        colors: Colors,
        image_size: tuple[int, int],
        num_channels: int,
    ) -> None:
        super().__init__()
        self.path, self.num_classes, self.colors = path, vocabulary, colors
        self.patch_size, self.shrink = patch_size, shrink
        self.low, self.high = value_range
        if not self.low < self.high:
            raise ValueError(f"{_KEYS}.RANGE is {shown(list(value_range))}, expected low < high")
        for side in image_size:
            require_divisible(side, patch_size, "DATA.IMG_SIZE", f"{_KEYS}.PATCH_SIZE")
            require_divisible(side, shrink, "DATA.IMG_SIZE", f"{_KEYS}.SHRINK")
        self.session = open_tokenizer(path)
        batch = self.session.get_inputs()[0].shape[0]
        height, width = image_size
        shape = batch if isinstance(batch, int) else 1, num_channels
        # What does not fit is found before a run begins.
        blank = np.full((*shape, height // shrink, width // shrink), self.low, np.float32)
        self._ids(blank, (height // patch_size, width // patch_size))

    def channels(self, image_channels: int) -> int:
        """One score for each id."""
        return self.num_classes

    def side(self, image_side: int) -> int:
        """Tokens along a side of the image."""
        return image_side // self.patch_size

    @torch.compiler.disable
    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> ids, integers (B, 1, h, w)."""
        height, width = map(self.side, image.shape[-2:])
        if type(image) is not Tensor or image.is_meta:  # without values: memory is counted
            return image.new_empty((len(image), 1, height, width), dtype=torch.int64)
        colors = F.avg_pool2d(self.colors(image).clamp(0, 1), self.shrink)
        given = self.low + (self.high - self.low) * colors.float()
        ids = self._ids(given.cpu().numpy(), (height, width))
        return torch.from_numpy(ids).unsqueeze(1).to(image.device)

    def to_pixels(self, prediction: Tensor, image: Tensor) -> Tensor:
        """Ids stand for no pixels."""
        raise ValueError(self.not_drawn)

    def _ids(self, images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
        """Ids of images, int64 (B, *grid); ValueError where the tokenizer gives anything else."""
        tokenizer = f"{_KEYS}.FILE {shown(self.path)}"
        try:
            (ids,) = self.session.run(None, {self.session.get_inputs()[0].name: images})
        except Exception as error:  # onnxruntime's errors have no class in common
            raise ValueError(
                f"{tokenizer} cannot be run on images of shape {images.shape}: {reason_of(error)}"
            ) from None
        if ids.shape != (len(images), *grid):
            raise ValueError(
                f"{tokenizer} gives ids of shape {ids.shape} for images of shape {images.shape}, "
                f"expected {(len(images), *grid)} by {_KEYS}.PATCH_SIZE {self.patch_size} and "
                f"SHRINK {self.shrink}"
            )
        if ids.min() < 0 or ids.max() >= self.num_classes:
            raise ValueError(
                f"{tokenizer} gives ids from {ids.min()} to {ids.max()}, expected 0 to "
                f"{self.num_classes - 1} by {_KEYS}.VOCABULARY"
            )
        return ids.astype(np.int64)


def open_tokenizer(path: str) -> Any:
    """Open an ONNX file of one float32 input and one integer output, with ONNX's operators only.

    ValueError where it is none, or onnxruntime is not installed.
    """
    if not path:
        raise ValueError(f"MODEL.SIMMIM.TARGET tokens needs {_KEYS}.FILE, an ONNX file")
    try:
        import onnxruntime
    except ImportError:
        raise ValueError(
            "MODEL.SIMMIM.TARGET tokens needs onnxruntime, which is not installed: "
            "pip install -r requirements-study.txt"
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised; one line tells of them
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no class in common
        raise ValueError(f"{_KEYS}.FILE {shown(path)} cannot be read: {reason_of(error)}") from None
    inputs, outputs = ([part.type for part in parts] for parts in _ends(session))
    if inputs != ["tensor(float)"] or len(outputs) != 1 or outputs[0] not in _INTEGERS:
        raise ValueError(
            f"{_KEYS}.FILE {shown(path)} has inputs {shown(inputs)} and outputs {shown(outputs)}, "
            "expected one of float32 images (B, C, H, W) and one of integers (B, h, w)"
        )
    return session


def _ends(session: Any) -> tuple[Any, Any]:
    return session.get_inputs(), session.get_outputs()
