"""Versions in the store: parameters, optimizer state, plans and programs, each under the hash of its bytes."""

import hashlib

import numpy as np
import safetensors.numpy

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Journal, VersionRef
from flsys_ray.core.layout import Vector
from flsys_ray.core.optimizers.base import ServerOptimizer
from flsys_ray.core.plan import TrainingPlan, parse_plan_json
from flsys_ray.core.types import OptimizerState, Version
from flsys_ray.errors import Missing, NotFound
from flsys_ray.storage.base import ObjectStore, put_same
from flsys_ray.wire.tensors import decode_vector, encode_vector


def sha256(body: bytes) -> str:
    """Return the hash of an object's bytes, in hex."""
    return hashlib.sha256(body).hexdigest()


def save_version(journal: Journal, version: Version, optimizer: ServerOptimizer, plan_sha256: str) -> VersionRef:
    """Store a version's numbers. It is no version yet: the next entry of the log makes it one."""
    store, model = journal.store, journal.model
    weights = encode_vector("parameters", version.parameters)
    state = encode_state(version.optimizer_state, optimizer)
    put_same(store, places.weights(model, sha256(weights)), weights)
    put_same(store, places.optimizer(model, sha256(state)), state)
    return VersionRef(
        number=version.number,
        entry=journal.next_entry,
        plan_sha256=plan_sha256,
        weights_sha256=sha256(weights),
        optimizer_sha256=sha256(state),
        optimizer_step=version.optimizer_state.step,
    )


def encode_state(state: OptimizerState, optimizer: ServerOptimizer) -> bytes:
    """Return the bytes of an optimizer's state. Same state, same bytes."""
    slots = dict(zip(optimizer.slots, state.vectors, strict=True))
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(slot) for name, slot in slots.items()}))


def load_version(store: ObjectStore, model: str, ref: VersionRef, size: int, optimizer: ServerOptimizer) -> Version:
    """Return a version of `size` parameters. A server optimizer with other slots than it was saved with starts anew."""
    parameters = load_parameters(store, model, ref.weights_sha256, size)
    slots = safetensors.numpy.load(store.get(places.optimizer(model, ref.optimizer_sha256)).body)
    if set(slots) != set(optimizer.slots):
        return Version(ref.number, parameters, optimizer.init(size))
    vectors = tuple(slots[name] for name in optimizer.slots)
    return Version(ref.number, parameters, OptimizerState(ref.optimizer_step, vectors))


def load_parameters(store: ObjectStore, model: str, weights_sha256: str, size: int) -> Vector:
    """Return the parameters [size] that lie under a hash."""
    return decode_vector(store.get(places.weights(model, weights_sha256)).body, "parameters", size)


def save_plan(store: ObjectStore, model: str, plan: TrainingPlan) -> str:
    """Store a plan and return its hash."""
    body = plan.model_dump_json().encode()
    put_same(store, places.plan(model, sha256(body)), body)
    return sha256(body)


def load_plan(store: ObjectStore, model: str, plan_sha256: str) -> TrainingPlan:
    """Return a stored plan."""
    return parse_plan_json(store.get(places.plan(model, plan_sha256)).body)


def load_program(store: ObjectStore, model: str, program_sha256: str) -> bytes:
    """Return a stored program file. Raises `NotFound`."""
    try:
        return store.get(places.program(model, program_sha256)).body
    except Missing:
        raise NotFound(f"model {model!r} has no program {program_sha256[:12]}") from None
