"""What a phone mixes into its training examples: its own portion of the model's shared set."""

import numpy as np

from flsys_ray.augmentation.shared import portion_of
from flsys_ray.device.examples import Batch
from flsys_ray.programs.manifest import Manifest
from flsys_ray.wire.schemas import SharedSetLink
from flsys_ray.wire.shared_sets import InputForm, decode_shared_set


def portion(link: SharedSetLink, body: bytes, manifest: Manifest, device_id: str) -> Batch:
    """Return the examples of a shared set that this device mixes in. Raises `DataInvalid` if it does not fit."""
    whole = decode_shared_set(body, InputForm(manifest.input_shape, manifest.input_dtype, manifest.classes))
    rows = portion_of(len(whole.y), link.share, seed=link.seed, device_id=device_id)
    return Batch(whole.x[rows], whole.y[rows])


def mixed(own: Batch, more: Batch | None) -> Batch:
    """Return the device's own examples and, behind them, those of its portion."""
    if more is None:
        return own
    return Batch(np.concatenate([own.x, more.x]), np.concatenate([own.y, more.y]))
