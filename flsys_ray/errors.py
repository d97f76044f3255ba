"""Every error of the platform, one tree.

    FlsysError                      code                    HTTP
    ├── InvalidInput                invalid-input           422
    │   ├── PlanInvalid             plan-invalid            422   `fields` names what contradicts
    │   ├── UpdateUnusable          update-unusable         422
    │   ├── ProgramInvalid          program-invalid         422
    │   │   └── NotLowerable        program-not-lowerable   422   `operator`, `layer`
    │   ├── DataInvalid             data-invalid            422
    │   │   └── DataLeak            data-leak               422
    │   ├── EmptyCohort             empty-cohort            422
    │   └── CohortTooSmall          cohort-too-small        422
    ├── Unauthenticated             unauthenticated         401
    ├── Forbidden                   forbidden               403
    ├── NotFound                    not-found               404
    ├── Conflict                    conflict                409
    ├── Late                        late                    410
    ├── TooLarge                    too-large               413
    ├── RangeUnsatisfiable          range-unsatisfiable     416
    ├── TryLater                    try-later               503   `retry_after_s`
    │   ├── StoreUnavailable        store-unavailable       503
    │   │   └── StoreFull           store-full              507
    │   ├── OwnershipLost           ownership-lost          503
    │   └── QuotaExceeded           quota-exceeded          429
    └── StoreRefusal                (never leaves the cloud)
        ├── AlreadyExists           a `put_new` found an object there
        ├── Changed                 a `swap` found another version there
        └── Missing                 no such object

Expected refusals of a device's request are values (`core.types.Rejected`), not exceptions. `code` is stable: clients
may rely on it. It is the last segment of the problem's `type` (RFC 9457). An error's message is public: it never holds
a secret or a path of the machine.
"""

from typing import ClassVar


class FlsysError(Exception):
    """The root. All arguments reach `Exception.__init__`, so that every error pickles."""

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Something broke inside the platform"

    @property
    def message(self) -> str:
        """What happened, where, and what to do about it."""
        return str(self.args[0]) if self.args else self.title


class InvalidInput(FlsysError):
    """Something given to the platform cannot be used as it is."""

    code, status, title = "invalid-input", 422, "The input cannot be used"


class PlanInvalid(InvalidInput):
    """A training plan contradicts itself. `fields` holds the dotted names of the fields involved."""

    code, status, title = "plan-invalid", 422, "The training plan cannot be used"

    def __init__(self, message: str, fields: tuple[str, ...] = ()) -> None:
        super().__init__(message, fields)
        self.fields = fields


class UpdateUnusable(InvalidInput):
    """An update has the wrong name, shape, dtype or values."""

    code, status, title = "update-unusable", 422, "The update cannot be used"


class ProgramInvalid(InvalidInput):
    """A device program or its manifest cannot be read or does not keep the contract of its signatures."""

    code, status, title = "program-invalid", 422, "The device program cannot be used"


class NotLowerable(ProgramInvalid):
    """A Keras model needs an operator that the built-in LiteRT operators cannot express."""

    code, status, title = "program-not-lowerable", 422, "The model cannot be lowered to a device program"

    def __init__(self, message: str, operator: str = "", layer: str = "") -> None:
        super().__init__(message, operator, layer)
        self.operator = operator
        self.layer = layer


class DataInvalid(InvalidInput):
    """A dataset, or a file of one, does not have the canonical form."""

    code, status, title = "data-invalid", 422, "The data cannot be used"


class DataLeak(DataInvalid):
    """A split shares a user, or overlapping windows, between its parts."""

    code, status, title = "data-leak", 422, "The split leaks"


class EmptyCohort(InvalidInput):
    """An aggregation rule was asked to finish without a single update."""

    code, status, title = "empty-cohort", 422, "No update to aggregate"


class CohortTooSmall(InvalidInput):
    """An aggregation rule was asked to finish with fewer updates than it needs."""

    code, status, title = "cohort-too-small", 422, "Too few updates to aggregate"


class Unauthenticated(FlsysError):
    """A key or token is missing, malformed, expired or unknown."""

    code, status, title = "unauthenticated", 401, "The credential is not valid"


class Forbidden(FlsysError):
    """A valid credential that does not give this right."""

    code, status, title = "forbidden", 403, "The credential does not allow this"


class NotFound(FlsysError):
    """No such thing, or none that this credential may know of."""

    code, status, title = "not-found", 404, "No such thing"


class Conflict(FlsysError):
    """The request contradicts what is there already."""

    code, status, title = "conflict", 409, "The request contradicts the present state"


class Late(FlsysError):
    """The assignment's round is over."""

    code, status, title = "late", 410, "The assignment is over"


class TooLarge(FlsysError):
    """A body has more bytes than its endpoint takes."""

    code, status, title = "too-large", 413, "The body is too large"


class RangeUnsatisfiable(FlsysError):
    """A `Range` header asks for bytes that the object does not have."""

    code, status, title = "range-unsatisfiable", 416, "The range cannot be served"


class TryLater(FlsysError):
    """A passing condition: the same request may succeed after `retry_after_s` seconds."""

    code, status, title = "try-later", 503, "Try again later"

    def __init__(self, message: str, retry_after_s: float = 5.0) -> None:
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s


class StoreUnavailable(TryLater):
    """The object store did not answer, or answered with a fault."""

    code, status, title = "store-unavailable", 503, "The object store does not answer"


class StoreFull(StoreUnavailable):
    """The object store has no space left."""

    code, status, title = "store-full", 507, "The object store is full"


class OwnershipLost(TryLater):
    """Another actor owns this model now: this one must stop."""

    code, status, title = "ownership-lost", 503, "The model moved to another actor"


class QuotaExceeded(TryLater):
    """An app has used up what the operator lets it use: models, bytes, check-ins or uploads a minute."""

    code, status, title = "quota-exceeded", 429, "The app has used up its quota"


class StoreRefusal(FlsysError):
    """A conditional call on the object store whose condition did not hold. Callers decide what it means."""

    code, status, title = "store-refusal", 500, "A condition on the object store did not hold"


class AlreadyExists(StoreRefusal):
    """`put_new`: there is an object under this key."""

    code = "already-exists"


class Changed(StoreRefusal):
    """`swap`: the object is not the one that the caller read."""

    code = "changed"


class Missing(StoreRefusal):
    """`get`: there is no object under this key."""

    code = "missing"


def all_errors() -> tuple[type[FlsysError], ...]:
    """Return every class of the tree, root first."""
    found: list[type[FlsysError]] = []
    queue: list[type[FlsysError]] = [FlsysError]
    while queue:
        kind = queue.pop(0)
        found.append(kind)
        queue.extend(kind.__subclasses__())
    return tuple(found)
