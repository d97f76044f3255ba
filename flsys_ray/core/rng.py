"""Randomness from (seed, purpose, round, device), and from nothing else.

Round n's draws depend on the plan's seed and on n only: not on arrival order, on restarts, or on the number of workers.
"""

import hashlib

import numpy as np


def _digest(seed: int, purpose: str, round_: int, device_id: str) -> bytes:
    text = f"{seed}\x1f{purpose}\x1f{round_}\x1f{device_id}"
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def generator(seed: int, purpose: str, round_: int = 0, device_id: str = "") -> np.random.Generator:
    """Return a numpy generator that is a function of its arguments."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(seed, purpose, round_, device_id))))


def unit(seed: int, purpose: str, round_: int = 0, device_id: str = "") -> float:
    """Return one number in [0, 1) that is a function of the arguments: cheaper than a generator.

    >>> unit(7, "selection", 3, "phone-1") == unit(7, "selection", 3, "phone-1")
    True
    """
    return (int.from_bytes(_digest(seed, purpose, round_, device_id)[:7]) >> 3) / 2.0**53
