"""Components are named, not imported: a component's name is its file's name.

`names("models")` lists the folder without importing anything heavy; `resolve("models", "unet")`
imports `medk2n.models.unet` and returns what it exports as `COMPONENT`.
"""

from difflib import get_close_matches
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from medk2n.errors import InternalError, UnknownNameError


def names(folder: str) -> list[str]:
    """Names of all components in `medk2n/<folder>`, sorted; sub-packages and _private files are none."""
    package = import_module(f"medk2n.{folder.replace('/', '.')}")
    return sorted(m.name for m in iter_modules(package.__path__) if not m.ispkg and not m.name.startswith("_"))


def resolve(folder: str, name: str) -> Any:
    """The component called `name`; imports that one module only.

    Raises:
        UnknownNameError: with the near names and the full list.
        InternalError: if the file exports no `COMPONENT`.
    """
    known = names(folder)
    if name not in known:
        near = get_close_matches(name, known, n=3)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise UnknownNameError(f"unknown name {name!r} in {folder}: {hint}known names: {', '.join(known)}")
    module = import_module(f"medk2n.{folder.replace('/', '.')}.{name}")
    try:
        return module.COMPONENT
    except AttributeError as error:
        raise InternalError(f"{module.__name__} exports no COMPONENT") from error
