"""Site processing (`site-packages`, virtual environments, `.pth` files) put off until an import needs it.

The interpreter starts with -S, because `site` costs up to 20 ms that a step without third-party packages need not pay.
"""

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec


class LazySite:
    """The last finder of sys.meta_path: a top-level module that nobody found starts site processing, once."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Finds what site processing brings within reach."""
        if path is not None:
            return None
        enable()
        from importlib.machinery import PathFinder

        return PathFinder.find_spec(name)


def install() -> None:
    """Arranges for site processing on demand; does nothing in an interpreter that has done it."""
    if "site" not in sys.modules:
        sys.meta_path.append(LazySite())
        builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment] # what site would bind


def enable() -> None:
    """Does the site processing that `install` put off; a second call does nothing."""
    put_off = [finder for finder in sys.meta_path if isinstance(finder, LazySite)]
    if put_off:
        sys.meta_path.remove(put_off[0])  # type: ignore[arg-type]
        import site

        site.main()
