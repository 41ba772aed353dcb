"""Compiles a bundle of sources (see loader.py): `python -I -S -c BUNDLE < sources > compiled`.

The compiled bundle has an additional field, `site`: the effects of site processing on `sys` and on the builtins, see
lazy_site.
"""
import _frozen_importlib_external  # type: ignore[import]
import marshal
import sys


def compile_bundle(sources: bytes) -> bytes:
    """Compiles each source in the bundle for this interpreter, and returns the compiled bundle. Raises ValueError if
    `sources` is not a bundle of sources."""
    if sources[:4] != b"src\n":
        raise ValueError("not a bundle of sources")
    compiled = [_frozen_importlib_external.MAGIC_NUMBER]
    at, name = 4, ""
    while at < len(sources):
        end = at + 4 + int.from_bytes(sources[at : at + 4], "big")
        field = sources[at + 4 : end]
        if name:
            field, name = marshal.dumps(compile(field, name, "exec", dont_inherit=True, optimize=0)), ""
        else:
            name = field.decode()
        compiled += [len(field).to_bytes(4, "big"), field]
        at = end
    for field in (b"site", marshal.dumps(site_processing())):
        compiled += [len(field).to_bytes(4, "big"), field]
    return b"".join(compiled)


def site_processing() -> "dict[str, object]":
    """Returns the effects of site processing that can be stored. Does not run the code in .pth files."""
    import builtins
    import site

    site.exec = lambda *_: None  # type: ignore[attr-defined]
    known = site.removeduppaths()  # type: ignore[attr-defined]
    before = list(sys.path)
    site.addsitepackages(site.venv(known))  # type: ignore[attr-defined]
    site.setcopyright()  # type: ignore[attr-defined]
    return {
        "prefix": sys.prefix,
        "path": [path for path in sys.path if path not in before],
        "printers": {name: vars(getattr(builtins, name)) for name in ("copyright", "credits", "license")},
    }


if __name__ == "__main__":
    sys.stdout.buffer.write(compile_bundle(sys.stdin.buffer.read()))
