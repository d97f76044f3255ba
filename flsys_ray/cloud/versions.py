"""Versions in the store: parameters, optimizer state, plans and programs, each under the hash of its bytes."""

import hashlib

import numpy as np
import safetensors.numpy

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Head, Journal, VersionRef
from flsys_ray.core.layout import Vector
from flsys_ray.core.optimizers.base import ServerOptimizer
from flsys_ray.core.plan import TrainingPlan, parse_plan_json
from flsys_ray.core.step import prepared
from flsys_ray.core.types import OptimizerState, Version
from flsys_ray.errors import Missing, NotFound, PlanInvalid
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.storage.base import ObjectStore, put_same
from flsys_ray.wire.tensors import decode_vector, encode_vector


def sha256(body: bytes) -> str:
    """Return the hash of an object's bytes, in hex."""
    return hashlib.sha256(body).hexdigest()


def save_version(journal: Journal, version: Version, plan: TrainingPlan, head: Head) -> VersionRef:
    """Store the numbers of the version that the open round of `head` made by `plan`.

    It is no version yet: the next entry of the log makes it one.
    """
    store, model = journal.store, journal.model
    weights = encode_vector("parameters", version.parameters)
    state = encode_state(version.optimizer_state, plan.server_optimizer)
    put_same(store, places.weights(model, sha256(weights)), weights)
    put_same(store, places.optimizer(model, sha256(state)), state)
    control_sha256 = None if version.control is None else save_control(store, model, version.control)
    return VersionRef(
        number=version.number,
        entry=journal.next_entry,
        plan_sha256=head.round_plan_sha256,
        weights_sha256=sha256(weights),
        optimizer_sha256=sha256(state),
        optimizer_step=version.optimizer_state.step,
        control_sha256=control_sha256,
        shared_sha256=None if version.number == 0 else mixed_in(plan, head),
    )


def mixed_in(plan: TrainingPlan, head: Head) -> str | None:
    """Return the hash of the set of which devices of the open round mix in a share, None if they do not."""
    return head.round_shared_sha256 if plan.augmentation.share > 0 else None


def save_control(store: ObjectStore, model: str, control: Vector) -> str:
    """Store a control and return the hash of its bytes."""
    body = encode_vector("control", control)
    put_same(store, places.control(model, sha256(body)), body)
    return sha256(body)


def control_of(ref: VersionRef, version: Version) -> str | None:
    """Return the hash of the control that an open round starts from. One that a version lacked is zeros."""
    if version.control is None or ref.control_sha256 is not None:
        return ref.control_sha256 if version.control is not None else None
    return sha256(encode_vector("control", version.control))


def encode_state(state: OptimizerState, optimizer: ServerOptimizer) -> bytes:
    """Return the bytes of an optimizer's state. Same state, same bytes."""
    slots = dict(zip(optimizer.slots, state.vectors, strict=True))
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(slot) for name, slot in slots.items()}))


def load_version(store: ObjectStore, model: str, ref: VersionRef, size: int, plan: TrainingPlan) -> Version:
    """Return a version of `size` parameters, ready for a plan.

    A server optimizer with other slots than it was saved with starts anew, and so does a control that it lacks.
    """
    optimizer, parameters = plan.server_optimizer, load_parameters(store, model, ref.weights_sha256, size)
    control = None
    if plan.aggregation.carries_control and ref.control_sha256 is not None:
        control = decode_vector(store.get(places.control(model, ref.control_sha256)).body, "control", size)
    slots = safetensors.numpy.load(store.get(places.optimizer(model, ref.optimizer_sha256)).body)
    if set(slots) != set(optimizer.slots):
        state = optimizer.init(size)
    else:
        state = OptimizerState(ref.optimizer_step, tuple(slots[name] for name in optimizer.slots))
    return prepared(Version(ref.number, parameters, state, control), plan)


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


def check_fit(plan: TrainingPlan, program: bytes) -> None:
    """Raises `PlanInvalid` if the program cannot be trained as the plan says.

    An aggregation rule may correct plain SGD steps, and the program take others; a transform may be for other inputs.
    """
    rule, manifest = plan.aggregation, read_manifest(program)
    if rule.carries_control and manifest.slots > 0:
        raise PlanInvalid(
            f"{rule.name} corrects the steps of plain SGD, and program {manifest.name!r} trains with the stateful "
            f"local optimizer {manifest.local_optimizer!r}: compile it with plain 'sgd', or choose another rule",
            ("aggregation",),
        )
    for transform in plan.augmentation.transforms:
        if misfit := transform.misfit(manifest.input_shape, manifest.input_dtype):
            text = f"program {manifest.name!r}: {misfit}: leave it out of augmentation.transforms"
            raise PlanInvalid(text, ("augmentation.transforms",))
