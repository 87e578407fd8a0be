"""Writing files that are either there whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> bool:
    """Write `text` through a temporary file, fsync and rename; False where it stood so already."""
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id keeps two writers of one file from tearing each other's temporary file.
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return True


def write_json(path: Path, value: Any) -> bool:
    """`write_text` of JSON; NaN has no place in it and is refused."""
    return write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """JSON on one line; NaN is null."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return json.dumps(finite_or_none(value), separators=(",", ":"), allow_nan=False)


def finite_or_none(value: Any) -> Any:
    """JSON has no NaN: a number that could not be measured is null there."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {key: finite_or_none(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_none(item) for item in value]
    return value
