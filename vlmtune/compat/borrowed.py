"""How a private or undocumented name of a library is declared, and looked up.

Any version of a library may move such a name, or keep it and no longer use it. So each is declared once, with the
reason why vlmtune needs it and what of it vlmtune relies on. A canary a name (tests/unit/test_compat.py) fails with
the name when it is no longer so; tests/arch/test_private_names.py finds uses that go around the declarations.
Everything may import this: a library is imported when a name of it is asked for.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Library:
    """A library, and the two versions on which the canaries of its names have passed."""

    name: str
    oldest: str
    newest: str


@dataclass(frozen=True)
class Name:
    """A function, a class or a table."""

    library: Library
    path: str
    why: str
    takes: str = ""
    """Arguments that vlmtune gives or is given, in their order; after `*` by their names; `...` are others."""
    read_by: str = ""
    """The library's code that looks the name up at each call: only so does it meet what `replaced` puts there."""
    plain: bool = False
    """Whether uses of it are written with a dot: it is documented, and only to be replaced through here, or it lies in
    another name that is declared."""
    cuda_only: bool = False
    """Whether torch has it only when it is built for CUDA."""

    def get(self) -> Any:
        """Return what the name stands for.

        Raises:
            ImportError: the installed version does not have it.
        """
        import_module(self.library.name)  # registers operations
        try:
            return resolve(self.path)
        except LookupError:
            raise ImportError(_moved(self), name=self.path) from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function, or make an object of the class."""
        return self.get()(*args, **kwargs)

    def replaced(self, value: Any) -> AbstractContextManager:
        """Return a context in which the library finds `value` under the name."""
        from unittest.mock import patch

        owner, _, name = self.path.rpartition(".")
        return patch.object(resolve(owner), name, value)


@dataclass(frozen=True)
class Attribute:
    """An attribute that objects of a class have."""

    library: Library
    of: str
    """The path of the class."""
    name: str
    why: str
    read_by: str = ""
    """The library's code that must read it, where it is written for that."""
    older: str = ""
    """Its name in the oldest versions, where that was another."""
    plain: bool = False
    """Whether uses of it are written with a dot: what it belongs to is found through another declaration, or the name
    is a word of vlmtune's own objects too, and a scan could not tell them apart."""

    @property
    def path(self) -> str:
        """Class and attribute."""
        return f"{self.of}.{self.name}"

    @cached_property
    def read(self) -> Callable[[Any], Any]:
        """The function that returns the attribute of an object: one of C, for code that runs at every operation."""
        if self.older:
            return lambda holder: getattr(holder, self.name, None) or getattr(holder, self.older)
        return attrgetter(self.name)

    def read_or_none(self, holder: Any) -> Any:
        """Return the attribute of an object, None where it has none."""
        return getattr(holder, self.name, None)

    def write(self, holder: Any, value: Any) -> None:
        """Set the attribute of an object."""
        setattr(holder, self.name, value)


@dataclass(frozen=True)
class Override:
    """A method or a value of a library's class that a class of vlmtune replaces with its own.

    Under another name the library would go on with its own, and nothing would say so.
    """

    library: Library
    path: str
    by: tuple[str, ...]
    """The classes of vlmtune that do."""
    why: str
    read_by: str = ""
    """The library's code that asks for it; by default the class's own."""


def resolve(path: str) -> Any:
    """Return what a dotted path names; the modules on it are imported.

    Raises:
        LookupError: there is no such name.
    """
    first, *names = path.split(".")
    found, here = import_module(first), first
    for name in names:
        here = f"{here}.{name}"
        try:
            found = getattr(found, name)
        except AttributeError:
            found = _module(here)
    return found


def _module(path: str) -> Any:
    try:
        return import_module(path)
    except ModuleNotFoundError as error:
        if f"{path}.".startswith(f"{error.name}."):
            raise LookupError(path) from None
        raise  # the module is there, and one that it imports is not


def _moved(name: Name) -> str:
    from importlib.metadata import version

    library = name.library
    return (
        f"{library.name} {version(library.name)} has no {name.path}, which vlmtune needs: {name.why} "
        f"{library.oldest} and {library.newest} have it"
    )
