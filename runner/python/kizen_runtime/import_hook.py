"""Runs a function after the first import of a module, so that the harness need not import it itself."""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def after_import(name: str, act: "Callable[[Any], None]") -> None:
    """Calls `act(module)` when the module `name` has been imported, or at once if it already is."""
    if name in sys.modules:
        act(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Finder(name, act))


class _Finder:
    """Waits for one module, then removes itself."""

    def __init__(self, name: str, act: "Callable[[Any], None]") -> None:
        self._name = name
        self._act = act

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "ModuleSpec | None":
        """Finds the module as the other finders do, with a loader that calls the function afterwards."""
        if name != self._name:
            return None
        for finder in [other for other in sys.meta_path if other is not self]:
            spec = finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                spec.loader = _Loader(self, spec.loader, self._act)  # type: ignore[assignment]
                return spec
        return None


class _Loader:
    """Wraps the module's own loader and calls the function when the module has loaded."""

    def __init__(self, finder: _Finder, loader: "Any", act: "Callable[[Any], None]") -> None:
        self._finder = finder
        self._loader = loader
        self._act = act

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """Creates the module as its own loader does."""
        module: "ModuleType | None" = self._loader.create_module(spec)
        return module

    def exec_module(self, module: "ModuleType") -> None:
        """Loads the module, gives it back its own loader, and calls the function."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._act(module)
