"""Public forms of versions in the store: made once, when a version is, for phones that download by the next plan.

Each lies there in three ways, all under the hash of their bytes: in full (float32, for phones that know of nothing
else), whole in half precision, and, where that is smaller, as a step from the form before it. A form names the last
steps that lead to it, as many as are smaller together than the whole, and no more than `STEPS`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Head, Journal, VersionRef
from flsys_ray.cloud.versions import save_version, sha256
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Version
from flsys_ray.errors import Missing
from flsys_ray.storage.base import ObjectStore, put_same
from flsys_ray.wire.developer_schemas import PublicForm, PublicStep
from flsys_ray.wire.public_forms import decode_half, encode_half, form_after, worth
from flsys_ray.wire.tensors import encode_vector


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """A public form, and its files by their place in the store."""

    form: PublicForm
    files: Mapping[str, bytes]


def save(journal: Journal, version: Version, plans: tuple[TrainingPlan, TrainingPlan], head: Head) -> VersionRef:
    """Store a version as `save_version` does, and its public form; `plans` are that of its round and the next one."""
    ref = save_version(journal, version, plans[0], head)
    made = public_form(journal.store, journal.model, version, plans[1], head.version.public if head.version else None)
    if made is None:
        return ref
    for place, body in made.files.items():
        put_same(journal.store, place, body)
    return ref.model_copy(update={"public": made.form})


def public_form(
    store: ObjectStore, model: str, version: Version, plan: TrainingPlan, before: PublicForm | None
) -> Made | None:
    """Return a version's public form for phones of a plan; None if they download the version itself.

    It is a function of the version, the plan, and the form of the version before, if that has one.
    """
    if plan.download == FLOAT32:
        return None
    files, steps = dict[str, bytes](), tuple[PublicStep, ...]()
    earlier = _half_of(store, model, before, version.parameters.size)
    rng = generator(plan.seed, "download", version.number)
    public, step = form_after(version.parameters, earlier, plan.download, rng)
    if step is not None and before is not None:
        files[places.public(model, "step", sha256(step))] = step
        name = plan.download.name
        last = PublicStep(before=before.sha256, sha256=sha256(step), size_bytes=len(step), encoding=name)
        steps = (*before.steps, last)
    full, whole = encode_vector("parameters", public), encode_half(public)
    files |= {places.public(model, "full", sha256(full)): full, places.public(model, "half", sha256(whole)): whole}
    kept = steps[len(steps) - worth([step.size_bytes for step in steps], len(whole)) :]
    form = PublicForm(sha256=sha256(full), half_sha256=sha256(whole), steps=kept)
    return Made(form, files)


def files_of(model: str, form: PublicForm) -> dict[str, str]:
    """Return the places of a form's files, and the hash of each."""
    found = {places.public(model, "full", form.sha256): form.sha256}
    found[places.public(model, "half", form.half_sha256)] = form.half_sha256
    return found | {places.public(model, "step", step.sha256): step.sha256 for step in form.steps}


def _half_of(store: ObjectStore, model: str, before: PublicForm | None, size: int) -> Vector | None:
    if before is None:
        return None
    try:
        return decode_half(store.get(places.public(model, "half", before.half_sha256)).body, size)
    except Missing:  # somebody made room: begin anew
        return None
