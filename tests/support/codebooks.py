"""Codebooks of colours and a tiny image tokenizer, as files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from safetensors.numpy import save_file


def write_codebook(path: Path, number: int) -> np.ndarray:
    """Write so many random colours; return them."""
    centres = np.random.default_rng(0).random((number, 3), dtype=np.float32)
    save_file({"centres": centres}, path)
    return centres


def write_tokenizer(
    path: Path, side: int = 4, levels: int = 10, batch: int | str = "B", squeeze: bool = True
) -> Path:
    """Write a tokenizer whose ids are levels x the mean of `side` x `side` pixels, rounded down."""
    real, integer = TensorProto.FLOAT, TensorProto.INT64
    nodes = [
        helper.make_node(
            "AveragePool", ["x"], ["mean"], kernel_shape=[side] * 2, strides=[side] * 2
        ),
        helper.make_node("ReduceMean", ["mean", "axis"], ["grey"], keepdims=int(not squeeze)),
        helper.make_node("Mul", ["grey", "levels"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["ids"], to=integer),
    ]
    constants = [
        helper.make_tensor("axis", integer, [1], [1]),
        helper.make_tensor("levels", real, [], [float(levels)]),
    ]
    shape: Sequence[int | str] = [batch, "C", "H", "W"]
    ids: list[int | str] = ["B", "h", "w"] if squeeze else ["B", "one", "h", "w"]
    graph = helper.make_graph(
        nodes,
        "tokenizer",
        [helper.make_tensor_value_info("x", real, shape)],
        [helper.make_tensor_value_info("ids", integer, ids)],
        constants,
    )
    versions = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=versions, ir_version=9), path)
    return path
