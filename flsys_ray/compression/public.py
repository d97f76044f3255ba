"""The public form of a version: what phones train from where a plan compresses downloads.

A public form is a vector of half precision numbers, so that it can be sent whole at half the bytes, or as a step from
the public form before: the encoded difference between the new version and that form. A step also makes up for what the
steps before it lost, since it is taken towards the version itself:

    public_n = half(public_{n-1} + decode(encode(version_n - public_{n-1})))

Versions themselves stay exact: phones compute gradients at the public form, and their deltas are added to the version.
Philippenko and Dieuleveut, "Preserved central model for faster bidirectional compression in distributed settings",
NeurIPS 2021 (arXiv 2102.12528): compression of the downlink impacts local models only, with a memory on both sides.
"""

import numpy as np

from flsys_ray.compression.base import Encoding, Parts
from flsys_ray.compression.float16 import LARGEST
from flsys_ray.core.layout import Vector


def half(vector: Vector) -> Vector:
    """Return float32 values that half precision can say: the nearest ones, ties to even, none above 65504."""
    return np.clip(vector, -LARGEST, LARGEST).astype(np.float16).astype(np.float32)


def step_to(parameters: Vector, public: Vector, encoding: Encoding, rng: np.random.Generator) -> Parts:
    """Return the step from a public form towards a version's parameters, float32 [P] both."""
    return encoding.encode(parameters - public, rng)


def stepped(public: Vector, encoding: Encoding, parts: Parts) -> Vector:
    """Return the public form behind a step: the same bits on every machine."""
    return half(public + encoding.decode(parts, 0, public.size))
