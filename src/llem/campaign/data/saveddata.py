"""A data set as Hugging Face's `save_to_disk` wrote it: its Arrow files in their order, its rows.

`dataset_info.json` is not asked how many rows there are: it says nothing of data that were made
from Python, and of one split it tells the rows of all. The files say it themselves, message by
message (the format "Encapsulated message" of Arrow's columnar specification), so that a login
node needs no pyarrow to plan.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llem.errors import Fault, InputError

STATE, SPLITS = "state.json", "dataset_dict.json"
# In a stream a message begins so, and one without metadata is its end.
_CONTINUES = 0xFFFFFFFF
# Of the union `MessageHeader`.
_RECORD_BATCH = 3


@dataclass(frozen=True)
class SavedDataset:
    """`folder` is that of its one split where it has one; `fingerprint` names the content."""

    folder: Path
    files: tuple[Path, ...]
    fingerprint: str

    def rows(self) -> int:
        """How many there are, as its files say. Raises InputError where one cannot be read."""
        return sum(_rows(path) for path in self.files)


def is_saved(folder: str | Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any(os.path.isfile(os.path.join(folder, name)) for name in (STATE, SPLITS))


def saved_dataset(folder: str | Path) -> SavedDataset:
    """The data set in `folder`, or its split where it has but one.

    Raises InputError where there is none, or several splits, or one whose saved indices choose
    from its rows.
    """
    place = Path(folder)
    if (place / SPLITS).is_file():
        names = [str(name) for name in _json(place, SPLITS).get("splits", ())]
        if len(names) != 1:
            text = f"holds the splits {', '.join(names)}"
            first = place / (names or ["train"])[0]
            raise _fault(place, text, f"name those that you mean, as {first}")
        return saved_dataset(place / names[0])
    if not (place / STATE).is_file():
        splits = sorted(path.parent.name for path in place.glob(f"*/{STATE}"))
        one_of = f"one of its splits: {', '.join(splits)}" if splits else None
        raise _fault(place, "is not a data set that save_to_disk wrote", one_of)
    state = _json(place, STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        text = "was saved with indices that choose from its rows"
        raise _fault(place, text, "call flatten_indices() before save_to_disk()")
    try:
        files = tuple(place / str(part["filename"]) for part in state["_data_files"])
    except (KeyError, TypeError):
        raise _fault(place, f"{STATE} does not name its files") from None
    return SavedDataset(place, files, str(state.get("_fingerprint")))


def _json(folder: Path, name: str) -> dict[str, Any]:
    try:
        found = json.loads((folder / name).read_text("utf-8"))
    except ValueError as error:
        raise _fault(folder, f"{name} is not JSON: {error}") from None
    except OSError as error:
        raise _fault(folder, f"{name} cannot be read: {error.strerror}") from None
    return found if isinstance(found, dict) else {}


def _fault(folder: Path, text: str, hint: str | None = None) -> InputError:
    return InputError(str(folder), [Fault("", text, hint)])


def _rows(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(_lengths(file))
    except OSError as error:
        raise InputError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except (struct.error, ValueError, IndexError):
        raise InputError(str(path), ["is not a whole Arrow stream"]) from None


def _lengths(file: IO[bytes]) -> Iterator[int]:
    """The rows of each batch of a stream; only what describes a batch is read, not its columns."""
    size = os.fstat(file.fileno()).st_size
    begun = False
    while start := file.read(8):
        mark, length = struct.unpack("<Ii", start)
        if mark != _CONTINUES or length < 0:
            raise ValueError
        if length == 0:
            return
        begun = True
        message = file.read(length)
        if len(message) < length:
            raise ValueError
        root = struct.unpack_from("<I", message)[0]
        body = _field(message, root, 3)
        if body is not None:
            file.seek(struct.unpack_from("<q", message, body)[0], os.SEEK_CUR)
        if file.tell() > size:
            raise ValueError
        kind, header = _field(message, root, 1), _field(message, root, 2)
        if kind is None or header is None or message[kind] != _RECORD_BATCH:
            continue
        batch = header + struct.unpack_from("<I", message, header)[0]
        rows = _field(message, batch, 0)
        yield struct.unpack_from("<q", message, rows)[0] if rows is not None else 0
    if not begun:
        raise ValueError


def _field(message: bytes, table: int, number: int) -> int | None:
    """Where a table of a flatbuffer has its field; None where it holds the default (zero)."""
    layout = table - struct.unpack_from("<i", message, table)[0]
    entry = 4 + 2 * number
    if entry >= struct.unpack_from("<H", message, layout)[0]:
        return None
    offset = struct.unpack_from("<H", message, layout + entry)[0]
    return table + offset if offset else None
