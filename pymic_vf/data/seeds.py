"""Randomness that follows from a seed and a sample's number alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

# The first part of every key, so that draws of different kinds never share one.
TRAIN, VALID, ORDER, VOLUME, SPARE, BODY = range(6)


@contextmanager
def seeded(*key: int) -> Iterator[np.random.Generator]:
    """Within the block, all randomness follows from `key`; afterwards Python's, numpy's and torch's go on as before.

    PyMIC's transforms draw from the three global generators, so these are what has to be seeded. Restoring them keeps
    the training's own draws (dropout) independent of whether samples are made in this process or in workers.

    Args:
        key: non-negative integers, such as (TRAIN, seed, sample number).

    Yields:
        A generator for draws of our own, seeded by the same key.
    """
    sequence = np.random.SeedSequence(key)
    words = sequence.generate_state(4)
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(int(words[0]))
    np.random.seed(words[1:3])
    torch.random.default_generator.manual_seed(int(words[3]))
    try:
        yield np.random.default_rng(sequence)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.random.set_rng_state(states[2])
