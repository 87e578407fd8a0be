"""Writing files that are either there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Made once: `json.dumps` makes one anew at every call.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


def write_text(path: Path, text: str | Iterable[str], *, wait: bool = True) -> bool:
    """Write a text, or pieces of one, through a temporary file and rename.

    False where it stood so already. With `wait` it is on the disk on return (fsync); else the
    system writes it within the minute: for what can be made again, and `force_to_disk` before
    something rests on it.
    """
    content = b"".join(piece.encode() for piece in ((text,) if isinstance(text, str) else text))
    if path.is_file() and path.read_bytes() == content:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one file from tearing each other's temporary file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "wb") as file:
        file.write(content)
        if wait:
            file.flush()
            os.fsync(file.fileno())
    os.replace(partial, path)
    return True


def force_to_disk(path: Path) -> None:
    """Return when what the file holds is on the disk: at once where it long is."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def write_json(path: Path, value: Any, *, wait: bool = True) -> bool:
    """`write_text` of JSON; NaN has no place in it and is refused."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n", wait=wait)


def read_json(path: str | Path) -> dict[str, Any]:
    """A mapping; empty where there is none, or none that can be read."""
    try:
        with open(path, "rb") as file:
            values = json.loads(file.read())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def json_line(value: Any) -> str:
    """JSON on one line; NaN is null."""
    try:
        return _ENCODER.encode(value)
    except ValueError:
        return _ENCODER.encode(finite_or_none(value))


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: a number that could not be measured is null there."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return value
