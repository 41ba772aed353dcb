"""Starts the harness: `python -I -S -c LOADER FD [MODE [ARGUMENT]...]`.

The loader reads the bundle of kizen_runtime from FD and runs its __main__.

The first frame on FD is the bundle. It has a four-byte header (this interpreter's pyc magic, or `src` and a line feed).
Then follow the name and the content (marshalled code, or source) of each module, each field preceded by its length in
four bytes, big-endian. The harness is never in the file system, where a step could find or alter it.
"""
import _frozen_importlib  # type: ignore[import]
import _frozen_importlib_external  # type: ignore[import]
import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import CodeType, ModuleType


class Bundle:
    """The importer of the modules in one bundle; each is unmarshalled when it is first imported."""

    def __init__(self, data: bytes) -> None:
        self.compiled = data[:4] != b"src\n"
        if self.compiled and data[:4] != _frozen_importlib_external.MAGIC_NUMBER:
            posix.write(2, b"the harness was compiled for another python; compile it again\n")
            posix._exit(70)
        fields, at = [], 4
        while at < len(data):
            end = at + 4 + int.from_bytes(data[at : at + 4], "big")
            fields.append(data[at + 4 : end])
            at = end
        self.files = {name.decode(): content for name, content in zip(fields[::2], fields[1::2])}

    def pack(self) -> bytes:
        """Returns the bundle as it was read."""
        packed = [_frozen_importlib_external.MAGIC_NUMBER if self.compiled else b"src\n"]
        for name, content in self.files.items():
            for field in (name.encode(), content):
                packed += [len(field).to_bytes(4, "big"), field]
        return b"".join(packed)

    def path(self, name: str) -> "str | None":
        """Returns the file of a module, if it is in the bundle."""
        stem = name.replace(".", "/")
        return next((path for path in (stem + ".py", stem + "/__init__.py") if path in self.files), None)

    def find_spec(self, name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        """Finds a module of the bundle."""
        file = self.path(name)
        if file is None:
            return None
        package = file.endswith("__init__.py")
        spec: "ModuleSpec" = _frozen_importlib.ModuleSpec(name, self, origin=file, is_package=package)
        spec.has_location = True
        return spec

    def create_module(self, spec: "ModuleSpec") -> None:
        """Lets the import system create the module."""

    def exec_module(self, module: "ModuleType") -> None:
        """Runs the module's body."""
        exec(self.get_code(module.__name__), module.__dict__)

    def get_code(self, name: str) -> "CodeType":
        """Returns the code object of a module; raises KeyError if it is not in the bundle."""
        file = self.path(name) or name
        content = self.files[file]
        code: "CodeType"
        if self.compiled:
            code = marshal.loads(content)
        else:
            code = compile(content, file, "exec", dont_inherit=True)
        return code


def receive(fd: int, size: int) -> bytes:
    """Reads exactly `size` bytes; ends the process if the file has fewer."""
    data = bytearray()
    while len(data) < size:
        chunk = posix.read(fd, size - len(data))
        if not chunk:
            posix._exit(71)
        data += chunk
    return bytes(data)


for method in (Bundle.find_spec, Bundle.exec_module, Bundle.get_code):
    # Tracebacks omit frames whose file is in kizen_runtime. The file "<string>" could also be the step's own.
    method.__code__ = method.__code__.replace(co_filename="kizen_runtime/loader.py")

fd = int(sys.argv[1])
sys.meta_path.insert(0, Bundle(receive(fd, int.from_bytes(receive(fd, 4), "big"))))

from kizen_runtime.__main__ import main

main(fd, *sys.argv[2:])
