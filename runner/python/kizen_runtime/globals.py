"""The names bound in a step: `inputs`, `outputs`, `secrets` and `kizen`."""

import sys
from types import ModuleType

from . import grammar, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .log import Log


class Inputs:
    """The supplied inputs, as attributes. An input supplied as null is None. An input that was not supplied has no
    attribute."""

    def __init__(self, values: "Mapping[str, Any]") -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        supplied = ", ".join(self.__dict__) or "none"
        raise AttributeError(
            f"input {name!r} was not supplied; supplied: {supplied}; "
            f"read an optional one with getattr(inputs, {name!r}, None)"
        )

    def __repr__(self) -> str:
        return f"<inputs: {', '.join(self.__dict__) or 'none'}>"


class Secrets(dict):  # type: ignore[type-arg]
    """The granted secrets, by name. Any other name raises a KeyError that lists the granted ones."""

    def __missing__(self, name: object) -> "Any":
        raise NotGranted(name, tuple(self))


class NotGranted(KeyError):
    """A KeyError whose text is a sentence; its argument is the key, as usual."""

    def __init__(self, name: object, granted: "tuple[str, ...]") -> None:
        super().__init__(name)
        self._granted = granted

    def __str__(self) -> str:
        name = self.args[0]
        likely = [granted for granted in self._granted if isinstance(name, str) and granted.endswith(f"__{name}")]
        hint = f"; this step reads it as secrets[{likely[0]!r}]" if likely else ""
        return f"secret {name!r} was not granted; granted: {', '.join(self._granted) or 'none'}{hint}"


NotGranted.__name__ = NotGranted.__qualname__ = "KeyError"  # the name that a step sees
NotGranted.__module__ = "builtins"


class Outputs:
    """The declared outputs, assigned as attributes; `outputs.log(message)` writes to the execution's log."""

    __slots__ = ("_types", "_values", "_written", "_lines", "_log", "_checks", "_refusal")

    def __init__(self, types: "Mapping[str, str]", log: "Log") -> None:
        set_slot = object.__setattr__
        set_slot(self, "_types", types)
        set_slot(self, "_values", {})
        set_slot(self, "_written", {})  # the wire form of each; None if it is encoded at the end
        set_slot(self, "_lines", {})
        set_slot(self, "_log", log)
        # How many more list elements may be checked when lists are assigned.
        set_slot(self, "_checks", 2 * grammar.MAX_ELEMENTS)
        set_slot(self, "_refusal", None)

    def log(self, msg: object = "") -> None:
        """Writes one message, converted with `str()`, to the execution's log."""
        self._log(str(msg))

    def __setattr__(self, name: str, value: "Any") -> None:
        if name not in self._types:
            declared = ", ".join(self._types) or "none"
            raise AttributeError(f"output {name!r} is not declared; declared: {declared}")
        try:
            written = _check(self, self._types[name], value)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            refusal = kind(f'output "{name}" cannot be written as {self._types[name]!r}: {error}')
            object.__setattr__(self, "_refusal", refusal)
            raise refusal from None
        self._values[name] = value
        self._written[name] = written
        self._lines[name] = sys._getframe(1).f_lineno

    def __getattr__(self, name: str) -> "Any":
        if name in self._values:
            return self._values[name]
        if name in self._types:
            raise AttributeError(f"output {name!r} has not been assigned")
        declared = ", ".join(self._types) or "none"
        raise AttributeError(f"output {name!r} is not declared; declared: {declared}")

    def __delattr__(self, name: str) -> None:
        if name not in self._values:
            self.__getattr__(name)
        del self._values[name], self._written[name], self._lines[name]

    def __repr__(self) -> str:
        return f"<outputs: {', '.join(self._types) or 'none'}>"


def _check(outputs: Outputs, code: str, value: "Any") -> "dict[str, Any] | None":
    """Returns the wire form of a value, or None if the value can still change. Raises ValueError or TypeError if it
    does not fit."""
    if not values.changes(code):
        return values.encode(code, value)
    # A step may assign a growing list again and again. So only this many elements are checked here, and the rest are
    # checked at the end.
    allowed = min(outputs._checks, grammar.MAX_ELEMENTS)
    room = values.Room(allowed)
    try:
        values.encode(code, value, room)
    except values.TooManyElements:
        if allowed == grammar.MAX_ELEMENTS:
            raise
    object.__setattr__(outputs, "_checks", outputs._checks - (allowed - max(0, room.elements)))
    return None


def written(outputs: Outputs, name: str) -> "dict[str, Any]":
    """Returns the wire form of an assigned output. Raises ValueError or TypeError if it has changed and no longer
    fits."""
    return outputs._written[name] or values.encode(outputs._types[name], outputs._values[name])


class Kizen(ModuleType):
    """The module `kizen`: `kizen.api`, and the types of files, options and stages. Each is imported when it is first
    used."""

    def __init__(self, api_url: str, api_root: str) -> None:
        super().__init__("kizen", "The Kizen API: kizen.api.get(path), and so on.")
        self._api_url = api_url
        self._api_root = api_root

    def __getattr__(self, name: str) -> "Any":
        if name == "api":
            from .client import Api

            self.api = Api(self._api_url, self._api_root)
            return self.api
        if name in ("KizenFile", "FieldOption", "Stage"):
            from . import datatypes

            return getattr(datatypes, name)
        raise AttributeError(f"module 'kizen' has no attribute {name!r}; it has api, KizenFile, FieldOption and Stage")
