"""Compiles a bundle of sources (see loader.py): `python -I -S -c BUNDLE < sources > compiled`."""
import _frozen_importlib_external  # type: ignore[import]
import marshal
import sys


def compile_bundle(sources: bytes) -> bytes:
    """The bundle with each source replaced by its code for this interpreter; ValueError when it is no bundle of sources."""
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
    return b"".join(compiled)


if __name__ == "__main__":
    sys.stdout.buffer.write(compile_bundle(sys.stdin.buffer.read()))
