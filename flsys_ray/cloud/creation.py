"""How a model comes to be."""

from flsys_ray.cloud.journal import Head, Journal
from flsys_ray.cloud.versions import save_plan
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.errors import OwnershipLost
from flsys_ray.storage.base import ObjectStore


def create_model(store: ObjectStore, model: str, app_id: str, plan: TrainingPlan, now: float) -> bool:
    """Create a draft. Returns False if the model was there already; its app must then be checked by the caller."""
    journal = Journal(store, model)
    digest = save_plan(store, model, plan)
    try:
        journal.append("created", Head(app_id=app_id, plan_sha256=digest, round_plan_sha256=digest), now)
    except OwnershipLost:
        return False
    return True
