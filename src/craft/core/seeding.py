"""Randomness as a pure function of named parts: `generator(seed, "epoch", 3)` is the same everywhere."""

import hashlib
import random

import torch


def stable_seed(*parts: object) -> int:
    """A 63-bit seed from the `repr` of `parts`, equal on every platform and in every process and run.

    (Python salts `hash` per process.) Parts should be plain values (str, int, float, tuples).
    """
    digest = hashlib.sha256(repr(parts).encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU `torch.Generator` seeded from `parts`."""
    return torch.Generator().manual_seed(stable_seed(*parts))


def rng(*parts: object) -> random.Random:
    """A `random.Random` seeded from `parts`."""
    return random.Random(stable_seed(*parts))


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (all devices)."""
    import numpy as np

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
