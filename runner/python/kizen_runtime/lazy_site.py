"""Does site processing (`site-packages`, virtual environments, `.pth` files) in two parts. The effects that a step
can see are applied at the start; the rest happens when an import needs it.

The interpreter starts with -S, because `site` costs up to 20 ms, and a step without third-party packages does not
need it.
"""

import builtins
import marshal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from typing import Any


class LazySite:
    """The last finder of sys.meta_path. It starts site processing when no other finder finds a top-level module."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Finds a module that site processing makes importable."""
        if path is not None:
            return None
        enable()
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name)


def install() -> None:
    """Sets up site processing on demand. Does nothing if the interpreter has already done it."""
    if "site" in sys.modules:
        return
    sys.meta_path.append(LazySite())
    known = getattr(__loader__, "files", {}).get("site")  # type: ignore[name-defined]
    if known:
        _apply(marshal.loads(known))
    else:  # the bundle could not be compiled
        import site

        for bind in (site.setquit, site.setcopyright, site.sethelper):  # type: ignore[attr-defined]
            bind()


def _apply(known: "dict[str, Any]") -> None:
    """Applies the recorded effects without importing `site`, which imports many modules."""
    from _sitebuiltins import Quitter, _Helper, _Printer

    sys.prefix = sys.exec_prefix = known["prefix"]
    sys.path += known["path"]
    for name in ("quit", "exit"):
        setattr(builtins, name, Quitter(name, "Ctrl-D (i.e. EOF)"))
    builtins.help = _Helper()  # type: ignore[assignment]
    for name, state in known["printers"].items():
        printer = object.__new__(_Printer)
        printer.__dict__.update(state)
        setattr(builtins, name, printer)


def enable() -> None:
    """Does the site processing that `install` deferred; a second call does nothing."""
    deferred = [finder for finder in sys.meta_path if isinstance(finder, LazySite)]
    if deferred:
        sys.meta_path.remove(deferred[0])  # type: ignore[arg-type]
        import site

        site.main()
