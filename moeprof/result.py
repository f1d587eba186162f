"""The base of every answer: a frozen dataclass that turns itself into plain JSON types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

# For a field that is too large for JSON, or of use to programs alone: `field(metadata=NOT_JSON)`.
NOT_JSON = {"json": False}


class Result:
    """Mixin for frozen dataclasses that a public function returns and a command prints."""

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, with arrays as lists and enums as their values."""
        plain: dict[str, Any] = to_plain(self)
        return plain


def to_plain(value: Any) -> Any:
    """`value` in JSON types: dict, list, str, int, float, bool or None."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = (f.name for f in fields(value) if f.metadata.get("json", True))
        return {name: to_plain(getattr(value, name)) for name in shown}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, without importing NumPy
        return value.tolist()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in value]
    return value
