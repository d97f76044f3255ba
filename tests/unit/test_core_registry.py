"""A registry finds each extension by its file, and refuses two of one name."""

import sys
from abc import ABC, abstractmethod
from importlib.metadata import EntryPoint
from typing import Literal

import pytest
from pydantic import TypeAdapter, ValidationError

from flsys_ray.core import registry as module
from flsys_ray.core.registry import Extension, Registry

ONE_FILE = """
from typing import Literal
from {package} import Shape

class {kind}(Shape):
    name: Literal["{name}"] = "{name}"
    side: float = 1.0

    def area(self):
        return self.side ** 2
"""
BASE = """
from abc import ABC, abstractmethod
from flsys_ray.core.registry import Extension

class Shape(Extension, ABC):
    @abstractmethod
    def area(self): ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make an importable package with an abstract base, and return a function that writes one extension into it."""
    name = f"shapes_{tmp_path.name.replace('-', '_')}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(BASE)
    monkeypatch.syspath_prepend(tmp_path)

    def write(file, kind, extension):
        (folder / f"{file}.py").write_text(ONE_FILE.format(package=name, kind=kind, name=extension))

    write.name = name
    yield write
    for loaded in [loaded for loaded in sys.modules if loaded.partition(".")[0] == name]:
        del sys.modules[loaded]


def registry_of(package):
    return Registry(__import__(package.name).Shape, package.name)


def test_one_new_file_is_found_without_a_list(package):
    package("square", "Square", "square")
    package("circle", "Circle", "circle")
    assert list(registry_of(package).classes) == ["circle", "square"]


def test_abstract_classes_in_between_are_no_extensions(package):
    package("square", "Square", "square")
    registry = registry_of(package)

    class Polygon(registry.base, ABC):
        @abstractmethod
        def corners(self): ...

    class Triangle(Polygon):
        name: Literal["triangle"] = "triangle"

        def corners(self):
            return 3

        def area(self):
            return 0.5

    assert registry.classes == {"square": registry.classes["square"], "triangle": Triangle}


def test_two_files_of_one_name_are_refused_by_both(package):
    package("square", "Square", "square")
    package("other", "Quadrat", "square")
    with pytest.raises(TypeError, match="'square'") as caught:
        _ = registry_of(package).classes
    assert "Square" in str(caught.value)
    assert "Quadrat" in str(caught.value)


def test_entry_points_add_extensions_of_other_distributions(package, monkeypatch):
    package("square", "Square", "square")
    registry = registry_of(package)
    outside = type(sys)("outside_shapes")
    monkeypatch.setitem(sys.modules, "outside_shapes", outside)

    class Star(registry.base):
        name: Literal["star"] = "star"

        def area(self):
            return 1.0

    outside.Star = Star
    points = {package.name: [EntryPoint("star", "outside_shapes:Star", package.name)]}
    monkeypatch.setattr(module, "entry_points", lambda group: points.get(group, []))
    assert registry.classes["star"] is Star


@pytest.mark.parametrize("count", [1, 2])
def test_a_field_takes_a_bare_name_or_a_mapping(package, count):
    for number in range(count):
        package(f"shape{number}", f"Shape{number}", f"shape{number}")
    adapter = TypeAdapter(registry_of(package).union("shape0"))
    assert adapter.validate_python("shape0").side == 1.0
    assert adapter.validate_python({"name": "shape0", "side": 2.5}).side == 2.5
    assert adapter.validate_python({"side": 2.5}).side == 2.5
    for wrong in (
        "shape9",
        {"name": "shape9"},
        {"name": "shape0", "sides": 1},
        {"name": "shape0", "side": float("nan")},
        3,
    ):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)


def test_an_extension_cannot_be_changed():
    class Dot(Extension):
        name: Literal["dot"] = "dot"

    with pytest.raises(ValidationError, match="frozen"):
        Dot().name = "line"
