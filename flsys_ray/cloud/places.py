"""Where everything lies in the object store.

    format.json                                     the number of the store's format (see `store_format`)
    probe/conditions                                what is written to see whether the store keeps conditions
    secrets/signing.json                            the root of device ids and app keys, and the first signing key
    secrets/keys.json                               the signing keys in use, once they were rotated
    secrets/operator.json                           the hash of the operator's key
    apps/{app}.json                                 a registered app
    enrolled/{app}.json                             how many devices an app has
    revoked/{app}.json                              which of its device tokens are refused
    devices/{app}/{device}.json                     that a device is counted, and whether it is revoked
    catalog/{model}.json                            that its name is taken
    models/{model}/log/{seq}.json                   the model's event log: its whole state (see `journal`)
    models/{model}/plans/{sha256}.json              plans
    models/{model}/programs/{sha256}.tflite         device programs
    models/{model}/weights/{sha256}.safetensors     parameters of versions
    models/{model}/optimizer/{sha256}.safetensors   server optimizer state of versions
    models/{model}/controls/{sha256}.safetensors    controls of versions, for a rule that carries one
    models/{model}/augmentation/{sha256}.safetensors   shared sets, of which phones mix in a share
    models/{model}/public/{way}/{sha256}.safetensors   public forms of versions: in full, in half precision, as steps
    models/{model}/versions/{n}.json                manifests of versions
    models/{model}/rounds/{round}/updates/{assignment}.{device}       an update as uploaded; empty: given back
    models/{model}/rounds/{round}/evaluations/{assignment}.{device}   a federated evaluation
    models/{model}/evaluations/{n}/{assignment}.{device}              one by an evaluation assignment of version n
    staged/{deadline}/{model}/{assignment}.{device}                   an update that is not announced yet, on S3

{model} is a model's id, `{app}/{name}`: names are an app's own. What lies in `secrets/` (but for the root), `apps/`,
`enrolled/`, `revoked/`, `devices/` and `probe/` may change. What is staged goes, and updates of old versions may (see
`pruning`). Nothing else here is ever replaced: every object is made once.
"""

import math

FORMAT = "format.json"
SIGNING_KEY = "secrets/signing.json"
SIGNING_KEYS = "secrets/keys.json"
OPERATOR_KEY = "secrets/operator.json"
APPS = "apps/"
CATALOG = "catalog/"
MODELS = "models/"
STAGED = "staged/"
_UPDATES = "updates"


def app(name: str) -> str:
    """Return the key of an app's record."""
    return f"{APPS}{name}.json"


def app_of(key: str) -> str:
    """Return the app that a record's key is about."""
    return key.removeprefix(APPS).removesuffix(".json")


def enrolled(app_id: str) -> str:
    """Return the key of how many devices an app has."""
    return f"enrolled/{app_id}.json"


def revoked(app_id: str) -> str:
    """Return the key of which device tokens of an app are refused."""
    return f"revoked/{app_id}.json"


def device(app_id: str, device_id: str) -> str:
    """Return the key of a device's record."""
    return f"devices/{app_id}/{device_id}.json"


def catalog(app_id: str) -> str:
    """Return the prefix of what says which models an app has."""
    return f"{CATALOG}{app_id}/"


def listed(model: str) -> str:
    """Return the key of what says that a model is there."""
    return f"{CATALOG}{model}.json"


def model_of(key: str) -> str:
    """Return the id of the model that a key of the catalog is about."""
    return key.removeprefix(CATALOG).removesuffix(".json")


def log(model: str) -> str:
    """Return the prefix of a model's log."""
    return f"{MODELS}{model}/log/"


def log_entry(model: str, seq: int) -> str:
    """Return the key of one entry of a model's log."""
    return f"{log(model)}{seq:012d}.json"


def plan(model: str, sha256: str) -> str:
    """Return the key of a plan."""
    return f"{MODELS}{model}/plans/{sha256}.json"


def program(model: str, sha256: str) -> str:
    """Return the key of a device program."""
    return f"{MODELS}{model}/programs/{sha256}.tflite"


def weights(model: str, sha256: str) -> str:
    """Return the key of a version's parameters."""
    return f"{MODELS}{model}/weights/{sha256}.safetensors"


def optimizer(model: str, sha256: str) -> str:
    """Return the key of a version's optimizer state."""
    return f"{MODELS}{model}/optimizer/{sha256}.safetensors"


def control(model: str, sha256: str) -> str:
    """Return the key of a version's control."""
    return f"{MODELS}{model}/controls/{sha256}.safetensors"


def shared(model: str, sha256: str) -> str:
    """Return the key of a shared set."""
    return f"{MODELS}{model}/augmentation/{sha256}.safetensors"


def public(model: str, way: str, sha256: str) -> str:
    """Return the key of a file of a version's public form: `full`, `half` or `step`."""
    return f"{MODELS}{model}/public/{way}/{sha256}.safetensors"


def versions(model: str) -> str:
    """Return the prefix of a model's version manifests."""
    return f"{MODELS}{model}/versions/"


def version(model: str, number: int) -> str:
    """Return the key of a version's manifest."""
    return f"{versions(model)}{number:08d}.json"


def rounds(model: str) -> str:
    """Return the prefix of what devices sent, round by round."""
    return f"{MODELS}{model}/rounds/"


def round_in(key: str) -> int:
    """Return the round in the key of an update or an evaluation of a round."""
    return int(key.split("/")[-3])


def is_update(key: str) -> bool:
    """Return whether a key of a round is that of an update."""
    return key.split("/")[-2] == _UPDATES


def updates(model: str, round_: int) -> str:
    """Return the prefix of a round's updates."""
    return f"{rounds(model)}{round_:08d}/{_UPDATES}/"


def update(model: str, round_: int, assignment_id: str, device_id: str) -> str:
    """Return the key of one assignment's outcome: its update, or nothing if it was given back."""
    return f"{updates(model, round_)}{assignment_id}.{device_id}"


def staged(model: str, deadline: float, assignment_id: str, device_id: str) -> str:
    """Return the key of an update that a phone puts there by itself: what is due first comes first."""
    return f"{STAGED}{math.ceil(deadline):012d}/{model}/{assignment_id}.{device_id}"


def staged_until(key: str) -> float:
    """Return the deadline in the key of a staged update, rounded up to a second."""
    return float(key.removeprefix(STAGED).partition("/")[0])


def evaluations(model: str, round_: int) -> str:
    """Return the prefix of a round's evaluations."""
    return f"{rounds(model)}{round_:08d}/evaluations/"


def evaluation(model: str, round_: int, assignment_id: str, device_id: str) -> str:
    """Return the key of one assignment's evaluation."""
    return f"{evaluations(model, round_)}{assignment_id}.{device_id}"


def version_evaluations(model: str, version: int) -> str:
    """Return the prefix of the evaluations that a version's own evaluation assignments brought."""
    return f"{MODELS}{model}/evaluations/{version:08d}/"


def version_evaluation(model: str, version: int, assignment_id: str, device_id: str) -> str:
    """Return the key of one of them."""
    return f"{version_evaluations(model, version)}{assignment_id}.{device_id}"


def owner_of(key: str) -> tuple[str, str]:
    """Return (assignment id, device id) of an update's or evaluation's key."""
    assignment_id, _, device_id = key.rpartition("/")[2].partition(".")
    return assignment_id, device_id
