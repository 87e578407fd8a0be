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
_PROBE_BYTES = 1 << 16


@dataclass(frozen=True)
class Rules:
    """How documents are found: the key (or column) of their text, what divides text files."""

    text_key: str = "text"
    separator: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A part of one source, or several small text files.

    `sources` are numbers in the list of sources, `weight` the bytes on disk that it stands for.
    What a process reads itself is named by `span` (first and number of bytes, or of rows) and
    `group`; `content` is what was read for it. Without `encode` it is only looked through.
    """

    sources: tuple[int, ...]
    files: tuple[SourceFile, ...]
    weight: int
    content: bytes | tuple[Any, ...] | None = None
    span: tuple[int, int] | None = None
    group: int | None = None
    encode: bool = True


@dataclass(frozen=True)
class Document:
    """The text of a document in UTF-8, and the number of its source."""

    source: int
    text: bytes


@dataclass(frozen=True)
class Bad:
    """A document that cannot be read: what is wrong, and its number among those of its unit.

    `mark` stands between the source's path and the number; empty where a file is one document.
    """

    path: str
    mark: str
    number: int
    message: str
    hint: str | None = None

    def told(self, before: int) -> Fault:
        """As a user reads it, where so many stand before the unit."""
        where = f"{self.path}{self.mark}{before + self.number}" if self.mark else self.path
        return Fault(where, self.message, self.hint)


Found = Document | Bad
# Path, mark and number of a `Bad`.
Where = tuple[str, str, int]


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
        elif source.format == JSONL and not source.compressed:
            yield from _spans(number, source)
        else:
            ending = b"\n" if source.format == JSONL else rules.separator
            assert ending is not None
            yield from _blocks(number, source, ending)
    if whole:
        yield _whole_files(whole)


def read_unit(unit: Unit, rules: Rules) -> Iterator[Found | None]:
    """The documents of a unit, what is wrong where one cannot be read, None where there is none.

    Of a line, row or part of a text there is one item each, so that they can be numbered.
    """
    source, number = unit.files[0], unit.sources[0]
    if source.format == JSONL:
        content = unit.content
        if unit.span is not None:
            # What follows the last line's end is no line.
            content = _read_span(source, *unit.span).removesuffix(b"\n")
        assert isinstance(content, bytes)
        for at, text in enumerate(content.split(b"\n"), start=1):
            yield _of_line(number, source.path, at, text, rules.text_key)
    elif source.format in (PARQUET, ARROW):
        if unit.content is not None:
            values: Any = unit.content
        elif source.format == PARQUET:
            values = _group_values(source.path, unit.group or 0, rules.text_key)
        else:
            assert unit.span is not None
            first, count = unit.span
            values = _arrow_column(source.path, rules.text_key).slice(first, count).to_pylist()
        for row, value in enumerate(values, start=1):
            yield _document(number, value, (source.path, ":row ", row), rules.text_key)
    elif unit.content is not None:
        assert isinstance(unit.content, bytes) and rules.separator is not None
        for at, text in enumerate(unit.content.split(rules.separator), start=1):
            yield _checked(number, text, (source.path, ":document ", at))
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
            faults.append(Fault(source.path, *_no_key(rules.text_key, schema.names, "column")))
            continue
        kind = schema.field(rules.text_key).type
        if arrow.types.is_dictionary(kind):
            kind = kind.value_type
        if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
                or kind == getattr(arrow, "string_view", lambda: None)()):  # fmt: skip
            text = f"column {rules.text_key!r} is {kind}, not text"
            faults.append(Fault(source.path, text))
    return faults


def column_of(path: str, key: str) -> Iterator[Any]:
    """The values of an Arrow file's column, whatever they are, read batch by batch.

    Raises InputError where it has none by the name or cannot be read, UnavailableError.
    """
    arrow = import_arrow(path)
    try:
        names = _arrow_table(path).schema.names
        if key not in names:
            raise InputError(path, [Fault("", *_no_key(key, names, "column"))])
        for chunk in _arrow_column(path, key).chunks:
            yield from chunk.to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise InputError(path, [f"is no arrow file: {str(error).splitlines()[0]}"]) from None


def _whole_files(files: Sequence[tuple[int, SourceFile]]) -> Unit:
    return Unit(
        sources=tuple(number for number, _ in files),
        files=tuple(file for _, file in files),
        weight=sum(file.bytes for _, file in files),
    )


def _spans(number: int, source: SourceFile) -> Iterator[Unit]:
    """Whole lines of a file that each process can read for itself."""
    with open(source.path, "rb", buffering=0) as file:
        begin = 0
        while begin < source.bytes:
            end = _line_end(file, begin + UNIT_BYTES, source)
            if end - begin > MOST_DOCUMENT_BYTES:
                text = f"from byte {begin} on: {_too_large(end - begin)}"
                raise InputError(source.path, [text])
            yield Unit(sources=(number,), files=(source,), weight=end - begin,
                       span=(begin, end - begin))  # fmt: skip
            begin = end


def _line_end(file: IO[bytes], at: int, source: SourceFile) -> int:
    """Where the line that byte `at` is in ends, or the file does."""
    file.seek(at - 1)
    while block := _read(file, source, _PROBE_BYTES):
        if (found := block.find(b"\n")) >= 0:
            return file.tell() - len(block) + found + 1
    return source.bytes


def _read_span(source: SourceFile, first: int, count: int) -> bytes:
    with open(source.path, "rb", buffering=0) as file:
        file.seek(first)
        parts = []
        while count and (block := file.read(count)):
            parts.append(block)
            count -= len(block)
    content = b"".join(parts)
    return content.removeprefix(_BOM) if first == 0 else content


def _blocks(number: int, source: SourceFile, ending: bytes) -> Iterator[Unit]:
    """Blocks of whole lines, or of whole documents between separators."""
    told, rest, begin = 0, b"", True
    with open_bytes(source) as file:
        while block := _read(file, source, UNIT_BYTES):
            rest += block.removeprefix(_BOM) if begin else block
            begin = False
            content, rest = _cut(rest, ending)
            if len(rest) > MOST_DOCUMENT_BYTES:
                raise InputError(source.path, [_too_large(len(rest))])
            if content is None:
                continue
            at = _place(file, source, told)
            yield Unit(sources=(number,), files=(source,), weight=at - told, content=content)
            told = at
    if rest or told < source.bytes:
        yield Unit(sources=(number,), files=(source,), weight=source.bytes - told, content=rest)


def _cut(content: bytes, ending: bytes) -> tuple[bytes | None, bytes]:
    """What is whole, if anything is, and the beginning of the next document."""
    if len(ending) == 1:
        at = content.rfind(ending)
        return (None, content) if at < 0 else (content[:at], content[at + 1 :])
    # From the left, as when the block is divided: from the right `\n\n` is found elsewhere in
    # `\n\n\n`.
    *whole, rest = content.split(ending)
    return (ending.join(whole) if whole else None), rest


def _read(file: IO[bytes], source: SourceFile, size: int) -> bytes:
    try:
        return file.read(size) or b""
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
    groups = file.metadata.num_row_groups
    for group in range(groups):
        found = file.metadata.row_group(group)
        weight = source.bytes * (group + 1) // groups - source.bytes * group // groups
        if found.total_byte_size <= MOST_GROUP_BYTES:
            yield Unit(sources=(number,), files=(source,), weight=weight, group=group)
            continue
        rows = max(1, found.num_rows * UNIT_BYTES // found.total_byte_size)
        for batch in file.iter_batches(rows, row_groups=[group], columns=[rules.text_key]):
            values = tuple(batch.column(0).to_pylist())
            share = len(values) * weight // found.num_rows
            yield Unit(sources=(number,), files=(source,), weight=share, content=values)


def _row_ranges(number: int, source: SourceFile, rules: Rules) -> Iterator[Unit]:
    column = _arrow_column(source.path, rules.text_key)
    rows = len(column)
    step = max(1, rows * UNIT_BYTES // max(1, column.nbytes))
    for first in range(0, rows, step):
        count = min(step, rows - first)
        weight = source.bytes * (first + count) // rows - source.bytes * first // rows
        yield Unit(sources=(number,), files=(source,), weight=weight, span=(first, count))


def _of_line(number: int, path: str, at: int, text: bytes, key: str) -> Found | None:
    """The document of a line of JSON, or what is wrong with it; None of a blank one."""
    if not text or text.isspace():
        return None
    where = (path, ":", at)
    try:
        values = json.loads(text)
    except UnicodeDecodeError as error:
        return Bad(*where, _not_utf8(error))
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", None) or str(error)
        column = getattr(error, "colno", None)
        return Bad(*where, f"is not JSON: {said}" + (f" (column {column})" if column else ""))
    if not isinstance(values, dict):
        hint = "one object a line is expected" if isinstance(values, list) else None
        return Bad(*where, f"is {_kind(values)}, not an object", hint)
    if key not in values:
        return Bad(*where, *_no_key(key, list(values), "key"))
    return _document(number, values[key], where, key)


def _document(number: int, value: Any, where: Where, key: str) -> Found:
    if not isinstance(value, str):
        return Bad(*where, f"{key}: is {_kind(value)}, not text")
    try:
        text = value.encode()
    except UnicodeEncodeError as error:
        half = ascii(value[error.start])[1:-1]
        return Bad(*where, f"{key}: holds {half}, half a pair of surrogates and no character")
    if len(text) > MOST_DOCUMENT_BYTES:
        return Bad(*where, f"{key}: {_too_large(len(text))}")
    return Document(number, text)


def _whole_file(number: int, source: SourceFile) -> Found:
    try:
        with open_bytes(source) as file:
            parts, size = [], 0
            while block := file.read(UNIT_BYTES):
                parts.append(block)
                size += len(block)
                if size > MOST_DOCUMENT_BYTES:
                    return Bad(source.path, "", 0, _too_large(max(size, source.bytes)))
    except (OSError, EOFError, ValueError) as error:
        return Bad(source.path, "", 0, f"cannot be read: {error}")
    return _checked(number, b"".join(parts).removeprefix(_BOM), (source.path, "", 0))


def _checked(number: int, text: bytes, where: Where) -> Found:
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError as error:
            return Bad(*where, _not_utf8(error), "convert it, as by iconv; or skip what is bad")
    return Document(number, text)


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}"


def _too_large(size: int) -> str:
    return (
        f"a document of {size} bytes or more; the most is {MOST_DOCUMENT_BYTES}: divide it, a text "
        "by document_separator"
    )


def _no_key(key: str, keys: Sequence[str], what: str) -> tuple[str, str]:
    """What is said of it, and the hint."""
    shown = ", ".join(keys[:_KEYS_SHOWN]) + (", ..." if len(keys) > _KEYS_SHOWN else "")
    near = did_you_mean(key, list(keys))
    return f"no {what} {key!r}", near or f"its {what}s: {shown or 'none'}"


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
