"""Finds one-file extensions by name.

An extension is a frozen pydantic model in a file of its own, with a field `name: Literal["..."] = "..."`. Its other
fields are its hyper-parameters, spelled the same in YAML, HTTP, Python and Tune. A registry imports every file of its
package, then the entry points of the group of the same name (for extensions that live in other distributions), and
offers the concrete classes as one pydantic union that is told apart by `name`.
"""

import importlib
import pkgutil
from functools import cached_property
from importlib.metadata import entry_points
from typing import Annotated, Any, Generic, TypeVar, Union

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema


class Extension(BaseModel):
    """The base of all extensions: immutable, and strict about misspelt hyper-parameters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str


E = TypeVar("E", bound=Extension)


class Registry(Generic[E]):
    """The concrete subclasses of `base` in the modules of `package`, by name.

    A base that lies outside of the core is given by its name in the package's module `base`.
    """

    def __init__(self, base: type[E] | str, package: str) -> None:
        self.base = base
        self.package = package

    @cached_property
    def classes(self) -> dict[str, type[E]]:
        """Return every extension by name, sorted. Raises `TypeError` if two share one."""
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=self.package):
            point.load()
        base = self.base
        if isinstance(base, str):
            base = getattr(importlib.import_module(f"{self.package}.base"), base)
        found: dict[str, type[E]] = {}
        for kind in _concrete(base):
            name = kind.model_fields["name"].default
            if found.setdefault(name, kind) is not kind:
                raise TypeError(f"{self.package}: {kind.__qualname__} and {found[name].__qualname__} are both {name!r}")
        return dict(sorted(found.items()))

    def union(self, default: str) -> Any:
        """Return the pydantic type of a field that takes any of them.

        A bare name stands for all defaults; hyper-parameters without a name are those of the extension `default`.
        """

        def named(value: Any) -> Any:
            if isinstance(value, str):
                return {"name": value}
            return {"name": default, **value} if isinstance(value, dict) else value

        kinds = tuple(self.classes.values())
        if len(kinds) == 1:
            return Annotated[kinds[0], BeforeValidator(named)]
        return Annotated[Union[kinds], Field(discriminator="name"), BeforeValidator(named)]  # noqa: UP007


class OneOf:
    """Marks a field of an extension that holds another extension, of the same registry perhaps.

    Its pydantic type is `registry.union(default)`, asked for when the field's model is first used: that model needs
    `defer_build`.
    """

    def __init__(self, registry: Registry[Any], default: str) -> None:
        self.registry = registry
        self.default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Return the union's schema."""
        return handler.generate_schema(self.registry.union(self.default))


def _concrete(base: type[E]) -> list[type[E]]:
    found: list[type[E]] = []
    for kind in base.__subclasses__():
        if isinstance(kind.model_fields["name"].default, str):
            found.append(kind)
        found.extend(_concrete(kind))
    return found
