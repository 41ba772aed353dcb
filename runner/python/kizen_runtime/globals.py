"""The names bound in a step: `inputs`, `outputs` and `kizen` (`secrets` is a plain dict)."""

import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from .log import Log


class Inputs:
    """The inputs that were supplied, as attributes; one supplied as null is None, one not supplied does not exist."""

    def __init__(self, values: "Mapping[str, Any]") -> None:
        self.__dict__.update(values)

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        supplied = ", ".join(self.__dict__) or "none"
        raise AttributeError(
            f"input {name!r} was not supplied; supplied: {supplied}; read an optional one with getattr(inputs, {name!r}, None)"
        )

    def __repr__(self) -> str:
        return f"<inputs: {', '.join(self.__dict__) or 'none'}>"


class Outputs:
    """The outputs that were declared, to be assigned as attributes; `outputs.log(message)` writes to the execution's log."""

    __slots__ = ("_types", "_values", "_lines", "_log")

    def __init__(self, types: "Mapping[str, str]", log: "Log") -> None:
        set_slot = object.__setattr__
        set_slot(self, "_types", types)
        set_slot(self, "_values", {})
        set_slot(self, "_lines", {})
        set_slot(self, "_log", log)

    def log(self, msg: object = "") -> None:
        """Writes one message, `str()` applied, to the execution's log."""
        self._log(str(msg))

    def __setattr__(self, name: str, value: "Any") -> None:
        if name not in self._types:
            declared = ", ".join(self._types) or "none"
            raise AttributeError(f"output {name!r} is not declared; declared: {declared}")
        self._values[name] = value
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
        del self._values[name], self._lines[name]

    def __repr__(self) -> str:
        return f"<outputs: {', '.join(self._types) or 'none'}>"


class Kizen(ModuleType):
    """The module `kizen`: `kizen.api`, and the types of files, options and stages. Nothing is imported before it is used."""

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
