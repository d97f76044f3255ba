"""What a developer's change makes of a model's head: checked against what is there already. Nothing is written here."""

from collections.abc import Mapping

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Head
from flsys_ray.cloud.versions import check_fit, load_program
from flsys_ray.core.ids import model_name
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.errors import Conflict, PlanInvalid
from flsys_ray.storage.base import ObjectStore

Changes = Mapping[str, object]
NOTHING: Changes = {}


def check_plan(store: ObjectStore, model: str, head: Head, plan: TrainingPlan) -> None:
    """Raises `PlanInvalid` if a model cannot train by this plan from the next round on."""
    if head.program_sha256 is not None:
        check_fit(plan, load_program(store, model, head.program_sha256))
    if head.version is not None and lacks_set(plan, head):
        raise PlanInvalid(f"{_lacking(model, plan)}, then this plan", ("augmentation.share",))


def check_start(model: str, head: Head, plan: TrainingPlan) -> None:
    """Raises `Conflict` if a model lacks what a start needs."""
    if head.program_sha256 is None:
        raise Conflict(f"model {model_name(model)!r} has no program: PUT /v1/models/{model_name(model)}/program first")
    if lacks_set(plan, head):
        raise Conflict(f"{_lacking(model, plan)}, then start it")


def check_program(model: str, head: Head, sha256: str) -> None:
    """Raises `Conflict` if a model takes no other program any more, and this is another one."""
    if head.program_sha256 == sha256:
        return
    if head.state == "archived":
        raise Conflict(f"model {model_name(model)!r} is archived: nothing changes it any more")
    if head.version is not None:
        raise Conflict(f"model {model_name(model)!r} has started: its program cannot be changed any more")


def program_of(model: str, head: Head) -> str:
    """Return the hash of the program that a shared set has to fit. Raises `Conflict` if the model takes no set."""
    if head.state == "archived":
        raise Conflict(f"model {model_name(model)!r} is archived: nothing changes it any more")
    if head.program_sha256 is None:
        raise Conflict(
            f"model {model_name(model)!r} has no program, which its shared set must fit: put the program first"
        )
    return head.program_sha256


def programmed(store: ObjectStore, model: str, head: Head, plan: TrainingPlan, sha256: str) -> Changes:
    """Return what another program changes. The shared set goes: it was made for the one before.

    Raises `Conflict`, `PlanInvalid`.
    """
    if head.program_sha256 == sha256:
        return NOTHING
    check_program(model, head, sha256)
    check_fit(plan, load_program(store, model, sha256))
    size = store.get(places.program(model, sha256), 0, 0).size
    without_set = {"shared_sha256": None, "round_shared_sha256": None}
    return {"program_sha256": sha256, "stored_bytes": head.stored_bytes + size, **without_set}


def augmented(store: ObjectStore, model: str, head: Head, sha256: str, program_sha256: str) -> Changes:
    """Return what another shared set changes: it was checked against a program. Raises `Conflict` if that is another.

    As long as there is no open round, it is that of the first one too.
    """
    if head.program_sha256 != program_sha256:
        raise Conflict(f"model {model_name(model)!r} has another program by now: put its shared set again")
    if head.shared_sha256 == sha256:
        return NOTHING
    size = store.get(places.shared(model, sha256), 0, 0).size
    changes = {"shared_sha256": sha256, "stored_bytes": head.stored_bytes + size}
    return changes if head.version is not None else changes | {"round_shared_sha256": sha256}


def lacks_set(plan: TrainingPlan, head: Head) -> bool:
    """Return whether a plan mixes in a shared set that is not there."""
    return plan.augmentation.share > 0 and head.shared_sha256 is None


def _lacking(model: str, plan: TrainingPlan) -> str:
    name, share = model_name(model), plan.augmentation.share
    return (
        f"model {name!r} has no shared set, of which augmentation.share mixes in {share:g}: "
        f"PUT /v1/models/{name}/augmentation first (`flsys models augment`)"
    )
