"""Python types for the Kizen values that have no built-in type: files, field options and stages."""

from uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class KizenFile:
    """A file: `url` is presigned and may be downloaded with plain `requests`; `size` is in bytes."""

    __slots__ = ("url", "name", "size", "content_type", "id")
    __module__ = "kizen"

    def __init__(
        self,
        url: str,
        name: "str | None" = None,
        size: "int | float | None" = None,
        content_type: "str | None" = None,
        id: "str | None" = None,
    ) -> None:
        self.url = url
        self.name = name
        self.size = size
        self.content_type = content_type
        self.id = id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KizenFile) and all(getattr(self, n) == getattr(other, n) for n in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.id, self.url))

    def __repr__(self) -> str:
        return f"KizenFile(name={self.name!r}, size={self.size!r}, content_type={self.content_type!r})"


class FieldOption(UUID):
    """An option of a choice field. It acts as its UUID: `str()`, `==` (with a UUID or its text) and `hash()` use the
    id."""

    __slots__ = ("name", "order", "code", "type_code")
    __module__ = "kizen"
    _fields: "tuple[str, ...]" = ("name", "order", "code")

    name: "str | None"
    order: "int | float | None"
    code: "str | None"
    type_code: "str | None"  # the wire's type code, o<object_id,field_id>, if the value came from the wire

    def __init__(self, id: "str | UUID", type_code: "str | None" = None, **fields: "Any") -> None:
        super().__init__(str(id))
        unknown = fields.keys() - set(self._fields)
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {min(unknown)!r}; it has {', '.join(self._fields)}")
        object.__setattr__(self, "type_code", type_code)  # UUID forbids assignments
        for field in self._fields:
            object.__setattr__(self, field, fields.get(field))

    def __eq__(self, other: object) -> bool:
        return str(self) == other.lower() if isinstance(other, str) else super().__eq__(other)

    def __hash__(self) -> int:
        return super().__hash__()

    def __repr__(self) -> str:
        fields = "".join(f", {field}={getattr(self, field)!r}" for field in self._fields)
        return f"{type(self).__name__}({str(self)!r}{fields})"

    def as_dict(self) -> "dict[str, Any]":
        """Returns the fields by name, without the id."""
        return {field: getattr(self, field) for field in self._fields}

    def __reduce__(self) -> "tuple[Any, ...]":
        return _rebuild, (type(self), str(self), self.type_code, self.as_dict())

    def __copy__(self) -> "FieldOption":
        return self

    def __deepcopy__(self, memo: object) -> "FieldOption":
        return self


class Stage(FieldOption):
    """A stage of a pipeline: an option with a `status` (open, won or lost) and a `percentage_chance_to_close`."""

    __slots__ = ("status", "percentage_chance_to_close")
    __module__ = "kizen"
    _fields = ("name", "order", "status", "percentage_chance_to_close")

    status: "str | None"
    percentage_chance_to_close: "int | float | None"


def _rebuild(kind: "type[FieldOption]", id: str, type_code: "str | None", fields: "dict[str, Any]") -> FieldOption:
    return kind(id, type_code, **fields)
