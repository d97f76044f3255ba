"""The error tree: what its docstring draws is what there is, and every error survives a trip between processes."""

import inspect
import pickle
import re

import pytest

from flsys_ray import errors
from flsys_ray.errors import FlsysError, all_errors

KINDS = [kind for kind in all_errors() if kind.__module__ == errors.__name__]
LINE = re.compile(r"^    (?P<indent>[│ ├└─]*)(?P<name>[A-Z]\w+)\s*(?:(?P<code>[a-z][a-z-]+)\s+(?P<status>\d{3}))?")


def drawn() -> dict[str, tuple[str | None, str | None, str | None]]:
    """Return name -> (parent, code, status) as the module's docstring draws them."""
    found: dict[str, tuple[str | None, str | None, str | None]] = {}
    parents: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"]) // 4
        parents[depth:] = [match["name"]]
        found[match["name"]] = (parents[depth - 1] if depth else None, match["code"], match["status"])
    return found


def test_the_docstring_names_every_class_once_and_under_its_parent():
    expected = {kind.__name__: kind.__bases__[0].__name__ for kind in KINDS}
    expected["FlsysError"] = None
    assert {name: parent for name, (parent, _, _) in drawn().items()} == expected
    text = errors.__doc__ or ""
    assert all(len(re.findall(rf"─ {kind.__name__}\b", text)) == 1 for kind in KINDS if kind is not FlsysError)


@pytest.mark.parametrize("kind", KINDS)
def test_the_docstring_tells_the_code_and_status_of_what_may_leave_the_cloud(kind):
    _, code, status = drawn()[kind.__name__]
    if kind is FlsysError or issubclass(kind, errors.StoreRefusal):
        assert code is None  # internal: a client never sees it by its own code
    else:
        assert (code, status) == (kind.code, str(kind.status))


def test_every_code_is_unique_and_fit_for_a_url():
    codes = [kind.code for kind in KINDS]
    assert sorted(codes) == sorted(set(codes))
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("kind", KINDS)
def test_status_and_title_are_those_of_an_error(kind):
    assert 400 <= kind.status <= 599
    assert kind.title
    passing = kind.status in (429, *range(500, 600))
    assert passing == issubclass(kind, errors.TryLater | errors.StoreRefusal) or kind is FlsysError


def arguments(kind: type[FlsysError]) -> tuple[object, ...]:
    """Return one argument, none of them the default, for each parameter of the constructor."""
    samples = {"message": "what happened", "fields": ("a.b", "c"), "retry_after_s": 7.5}
    parameters = [p for p in inspect.signature(kind.__init__).parameters.values() if p.name != "self"]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return ("what happened",)
    return tuple(samples.get(p.name, p.name.upper()) for p in parameters)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_pickles_with_all_its_arguments(kind):
    error = kind(*arguments(kind))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.args == error.args == arguments(kind)
    assert vars(again) == vars(error)
    assert again.message == "what happened"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "__init__" not in vars(kind) and not arguments(kind)[1:]])
def test_an_error_without_a_message_says_its_title(kind):
    assert kind().message == kind.title
