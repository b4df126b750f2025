"""Random numbers that follow from a key of integers, not from what was drawn before."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import get_worker_info

# Streams of randomness: the first part of a key, so that equal numbers of two streams differ.
MODEL_STREAM, SAMPLE_STREAM, UPDATE_STREAM, SUBSTITUTE_STREAM = range(4)


def seed_all(stream: int, *key: int) -> None:
    """Seed Python, NumPy and torch, on every device, from a stream and integers from 0."""
    seed = _seed_cpu(stream, *key)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


@contextlib.contextmanager
def seeded(stream: int, *key: int) -> Iterator[None]:
    """Inside, randomness on the CPU follows from the key; afterwards it goes on as before.

    In a loader's worker nothing else is random, so there the states are not put back.
    """
    if get_worker_info() is not None:
        _seed_cpu(stream, *key)
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed_cpu(stream, *key)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _seed_cpu(*key: int) -> int:
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(4)]
    random.seed(words[0])
    np.random.seed(words[1])
    seed = words[2] << 32 | words[3]
    torch.default_generator.manual_seed(seed)
    return seed
