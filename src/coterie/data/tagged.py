"""Python values as JSON and back: tuples, sets and tables with other than text keys carry a tag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def encode(value: Any) -> Any:
    """JSON that `decode` turns back into the same value."""
    if value is None or isinstance(value, bool | int | float | str):
        # A subclass such as numpy's str_ or an IntEnum becomes the plain type.
        kinds = (bool, int, float, str)
        return next((kind(value) for kind in kinds if isinstance(value, kind)), None)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"__tuple__": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {
            "__frozenset__" if isinstance(value, frozenset) else "__set__": sorted(
                (encode(item) for item in value), key=repr
            )
        }
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and not key.startswith("__") for key in value):
            return {str(key): encode(item) for key, item in value.items()}
        return {"__pairs__": [[encode(key), encode(item)] for key, item in value.items()]}
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return encode(value.tolist())
    return str(value)


def decode(value: Any) -> Any:
    """Inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "__tuple__" in value:
        return tuple(decode(value["__tuple__"]))
    if "__set__" in value:
        return set(decode(value["__set__"]))
    if "__frozenset__" in value:
        return frozenset(decode(value["__frozenset__"]))
    if "__pairs__" in value:
        return {decode(key): decode(item) for key, item in value["__pairs__"]}
    return {key: decode(item) for key, item in value.items()}
