"""Documents out of sources, in units of a few mebibytes that processes take one after the other.

What a unit holds follows from the sources alone, so that however many processes there are, the
documents come in the same order. A text file is one document unless a separator divides it; a
line of JSON, or a row, is one document each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import IO, Any

from llem.data.sources import ARROW, JSONL, PARQUET, SourceFile, import_arrow, open_bytes
from llem.errors import Fault, InputError, did_you_mean

UNIT_BYTES = 2 << 20
UNIT_FILES = 256
# A document is in memory as a whole; one that is larger is hardly one.
MOST_DOCUMENT_BYTES = 256 << 20
# A group of rows larger than this is read piece by piece, before processes get it.
MOST_GROUP_BYTES = 64 << 20
_BOM = b"\xef\xbb\xbf"
_KEYS_SHOWN = 8


@dataclass(frozen=True)
class Rules:
    """How documents are found: the key (or column) of their text, what divides text files."""

    text_key: str = "text"
    separator: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of one source, or several small text files.

    `sources` are numbers in the list of sources, `weight` the bytes on disk that it stands for.
    What a process reads itself is named by `rows` (first, count) and `group`; `content` is what
    was read for it, from line, document or row `first` on.
    """

    sources: tuple[int, ...]
    files: tuple[SourceFile, ...]
    weight: int
    content: bytes | tuple[Any, ...] | None = None
    first: int = 1
    rows: tuple[int, int] | None = None
    group: int | None = None


@dataclass(frozen=True)
class Document:
    """The text of a document in UTF-8, and the number of its source."""

    source: int
    text: bytes


Found = Document | Fault


def units_of(sources: Sequence[SourceFile], rules: Rules) -> Iterator[Unit]:
    """All units, in order; reads no more of the sources than it must. Raises InputError."""
    whole: list[tuple[int, SourceFile]] = []
    for number, source in enumerate(sources):
        if source.format not in (JSONL, PARQUET, ARROW) and rules.separator is None:
            full = sum(file.bytes for _, file in whole) + source.bytes > UNIT_BYTES
            if whole and (full or len(whole) == UNIT_FILES):
                yield _whole_files(whole)
                whole = []
            whole.append((number, source))
            continue
        if whole:
            yield _whole_files(whole)
            whole = []
        if source.format == PARQUET:
            yield from _row_groups(number, source, rules)
        elif source.format == ARROW:
            yield from _row_ranges(number, source, rules)
        else:
            ending = b"\n" if source.format == JSONL else rules.separator
            assert ending is not None
            yield from _blocks(number, source, ending)
    if whole:
        yield _whole_files(whole)


def read_unit(unit: Unit, rules: Rules) -> Iterator[Found]:
    """The documents of a unit, and in the place of those that cannot be read what is wrong."""
    source, number = unit.files[0], unit.sources[0]
    if source.format == JSONL:
        assert isinstance(unit.content, bytes)
        yield from _json_lines(number, source, unit.content, unit.first, rules)
    elif source.format in (PARQUET, ARROW):
        if unit.content is not None:
            values: Any = unit.content
        elif source.format == PARQUET:
            values = _group_values(source.path, unit.group or 0, rules.text_key)
        else:
            assert unit.rows is not None
            first, count = unit.rows
            values = _arrow_column(source.path, rules.text_key).slice(first, count).to_pylist()
        for row, value in enumerate(values, start=unit.first):
            where = f"{source.path}:row {row}"
            yield _document(number, value, where, rules.text_key)
    elif unit.content is not None:
        assert isinstance(unit.content, bytes) and rules.separator is not None
        parts = unit.content.split(rules.separator)
        for index, text in enumerate(parts, start=unit.first):
            yield _checked(number, text, f"{source.path}:document {index}")
    else:
        for number, source in zip(unit.sources, unit.files, strict=True):
            yield _whole_file(number, source)


def check_columns(sources: Sequence[SourceFile], rules: Rules) -> list[Fault]:
    """Of Parquet and Arrow files, those that have no column of text by the name of the key."""
    faults = []
    for source in sources:
        if source.format not in (PARQUET, ARROW):
            continue
        arrow = import_arrow(source.path)
        try:
            schema = (
                _parquet(source.path).schema_arrow
                if source.format == PARQUET
                else _arrow_table(source.path).schema
            )
        except (OSError, arrow.ArrowException) as error:
            said = str(error).splitlines()[0]
            faults.append(Fault(source.path, f"is no {source.format} file: {said}"))
            continue
        if rules.text_key not in schema.names:
            faults.append(_no_key(source.path, rules.text_key, schema.names, "column"))
            continue
        kind = schema.field(rules.text_key).type
        if arrow.types.is_dictionary(kind):
            kind = kind.value_type
        if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
                or kind == getattr(arrow, "string_view", lambda: None)()):  # fmt: skip
            text = f"column {rules.text_key!r} is {kind}, not text"
            faults.append(Fault(source.path, text))
    return faults


def _whole_files(files: Sequence[tuple[int, SourceFile]]) -> Unit:
    return Unit(
        sources=tuple(number for number, _ in files),
        files=tuple(file for _, file in files),
        weight=sum(file.bytes for _, file in files),
    )


def _blocks(number: int, source: SourceFile, ending: bytes) -> Iterator[Unit]:
    """Blocks of whole lines, or of whole documents between separators."""
    first, told, rest = 1, 0, b""
    with open_bytes(source) as file:
        begin = True
        while block := _read(file, source):
            if begin and block.startswith(_BOM):
                block = block[len(_BOM) :]
            begin = False
            rest += block
            # A separator found from the left, as when the block is divided, and not from the
            # right, which may find another in `\n\n\n`.
            content, found, rest = _cut(rest, ending)
            if len(rest) > MOST_DOCUMENT_BYTES:
                raise InputError(
                    source.path, [Fault(f"from {first + found} on", _too_large(len(rest)))]
                )
            if not found:
                continue
            at = _place(file, source, told)
            yield Unit(sources=(number,), files=(source,), weight=at - told, content=content,
                       first=first)  # fmt: skip
            first, told = first + found, at
    if rest or told < source.bytes:
        yield Unit(sources=(number,), files=(source,), weight=source.bytes - told, content=rest,
                   first=first)  # fmt: skip


def _cut(content: bytes, ending: bytes) -> tuple[bytes, int, bytes]:
    """What is whole, of how many documents it is, and the beginning of the next."""
    if len(ending) == 1:
        at = content.rfind(ending)
        return (b"", 0, content) if at < 0 else (
            content[:at], content.count(ending, 0, at) + 1, content[at + 1 :]
        )  # fmt: skip
    *whole, rest = content.split(ending)
    return ending.join(whole), len(whole), rest


def _read(file: IO[bytes], source: SourceFile) -> bytes:
    try:
        return file.read(UNIT_BYTES) or b""
    except (OSError, EOFError, ValueError) as error:
        raise InputError(source.path, [f"cannot be read: {error}"]) from None


def _place(file: IO[bytes], source: SourceFile, told: int) -> int:
    """How far the file on disk has been read."""
    if not source.compressed:
        return file.tell()
    # Where the standard library's readers keep the file below them; Arrow's tells nothing.
    below = getattr(file, "fileobj", None) or getattr(file, "_fp", None)
    return told if below is None else max(told, min(source.bytes, int(below.tell())))


def _row_groups(number: int, source: SourceFile, rules: Rules) -> Iterator[Unit]:
    file = _parquet(source.path)
    first, groups = 1, file.metadata.num_row_groups
    for group in range(groups):
        found = file.metadata.row_group(group)
        weight = source.bytes * (group + 1) // groups - source.bytes * group // groups
        if found.total_byte_size <= MOST_GROUP_BYTES:
            yield Unit(sources=(number,), files=(source,), weight=weight, group=group, first=first)
        else:
            rows = max(1, found.num_rows * UNIT_BYTES // found.total_byte_size)
            seen = 0
            for batch in file.iter_batches(rows, row_groups=[group], columns=[rules.text_key]):
                values = tuple(batch.column(0).to_pylist())
                share = len(values) * weight // found.num_rows
                yield Unit(sources=(number,), files=(source,), weight=share, content=values,
                           first=first + seen)  # fmt: skip
                seen += len(values)
        first += found.num_rows


def _row_ranges(number: int, source: SourceFile, rules: Rules) -> Iterator[Unit]:
    column = _arrow_column(source.path, rules.text_key)
    rows = len(column)
    step = max(1, rows * UNIT_BYTES // max(1, column.nbytes))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        weight = source.bytes * (first + count) // rows - source.bytes * first // rows
        yield Unit(sources=(number,), files=(source,), weight=weight, rows=(first, count),
                   first=first + 1)  # fmt: skip


def _json_lines(
    number: int, source: SourceFile, content: bytes, first: int, rules: Rules
) -> Iterator[Found]:
    for line, text in enumerate(content.split(b"\n"), start=first):
        if not text or text.isspace():
            continue
        where = f"{source.path}:{line}"
        try:
            values = json.loads(text)
        except UnicodeDecodeError as error:
            yield Fault(where, _not_utf8(error))
            continue
        except (ValueError, RecursionError) as error:
            said = getattr(error, "msg", None) or str(error)
            column = getattr(error, "colno", None)
            yield Fault(where, f"is not JSON: {said}" + (f" (column {column})" if column else ""))
            continue
        if not isinstance(values, dict):
            hint = "one object a line is expected" if isinstance(values, list) else None
            yield Fault(where, f"is {_kind(values)}, not an object", hint)
        elif rules.text_key not in values:
            yield _no_key(where, rules.text_key, list(values), "key")
        else:
            yield _document(number, values[rules.text_key], where, rules.text_key)


def _document(number: int, value: Any, where: str, key: str) -> Found:
    if not isinstance(value, str):
        return Fault(where, f"{key}: is {_kind(value)}, not text")
    try:
        text = value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])[1:-1]
        return Fault(where, f"{key}: holds {half}, half a pair of surrogates and no character")
    if len(text) > MOST_DOCUMENT_BYTES:
        return Fault(where, f"{key}: {_too_large(len(text))}")
    return Document(number, text)


def _whole_file(number: int, source: SourceFile) -> Found:
    try:
        with open_bytes(source) as file:
            parts, size = [], 0
            while block := file.read(UNIT_BYTES):
                parts.append(block)
                size += len(block)
                if size > MOST_DOCUMENT_BYTES:
                    return Fault(source.path, _too_large(max(size, source.bytes)))
    except (OSError, EOFError, ValueError) as error:
        return Fault(source.path, f"cannot be read: {error}")
    text = b"".join(parts)
    return _checked(number, text[len(_BOM) :] if text.startswith(_BOM) else text, source.path)


def _checked(number: int, text: bytes, where: str) -> Found:
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return Fault(where, _not_utf8(error), "convert it, as by iconv; or skip what is bad")
    return Document(number, text)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"


def _too_large(size: int) -> str:
    return (
        f"a document of {size} bytes or more; the most is {MOST_DOCUMENT_BYTES}: divide it, a text "
        "by document_separator"
    )


def _no_key(where: str, key: str, keys: Sequence[str], what: str) -> Fault:
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    near = did_you_mean(key, list(keys))
    return Fault(where, f"no {what} {key!r}", near or f"its {what}s: {shown or 'none'}")


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", dict: "an object", list: "a list"}
    return names.get(type(value), "a number" if isinstance(value, (int, float)) else "no text")


@lru_cache(maxsize=2)
def _parquet(path: str) -> Any:
    import_arrow(path)
    from pyarrow import parquet

    return parquet.ParquetFile(path)


def _group_values(path: str, group: int, key: str) -> list[Any]:
    table = _parquet(path).read_row_group(group, columns=[key], use_threads=False)
    values: list[Any] = table.column(0).to_pylist()
    return values


@lru_cache(maxsize=2)
def _arrow_table(path: str) -> Any:
    """The file as a table whose columns stay on disk until they are read."""
    arrow = import_arrow(path)
    file = arrow.memory_map(path)
    try:
        return arrow.ipc.open_stream(file).read_all()
    except arrow.ArrowInvalid:
        return arrow.ipc.open_file(file).read_all()


def _arrow_column(path: str, key: str) -> Any:
    return _arrow_table(path).column(key)
