"""Text to a token file: `de.bin`, its documents' index `de.idx`, and the sidecar `de.bin.json`.

Two passes. In the first several processes read the sources and write ids, each into a file of its
own; what is told of them here is in the order of the sources. The second copies documents that
are trained on, then those that are held out, while it hashes what it writes: which they are is
known only when all tokens are counted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from llem.campaign import parse_count
from llem.campaign.data.prepared import BYTES, Prepared, Source, index_of, sidecar_of
from llem.campaign.data.tokenfile import ITEM_BYTES, fingerprint
from llem.data.documents import Rules, check_columns, units_of
from llem.data.sources import SourceFile, find_sources
from llem.data.split import count_unique, last_held_out, runs_of
from llem.data.tokenizer import Tokenizer, load_tokenizer
from llem.data.workers import MOST_FAULTS, Work, chunks_of
from llem.data.workspace import put_in_place, workspace
from llem.errors import Fault, InputError, LlemError

AUTO = "auto"
# Without a word from the user: a twentieth of the tokens, at most ten million.
DEFAULT_SHARE = Fraction(1, 20)
DEFAULT_TOKENS = 10_000_000
# Of more source files than this the sidecar tells the places that they are in.
MOST_SOURCES = 1000
# A login node is shared: more than this only where it is asked for.
MOST_WORKERS = 8
# Sources smaller than this are read before another process has started.
_WORKER_BYTES = 4 << 20

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far the work is: bytes of the sources on disk, and what they have become.

    `elapsed_s` is the first pass's; in the second, `written` tokens are where they will stay.
    """

    bytes_done: int
    bytes_total: int
    documents: int
    tokens: int
    elapsed_s: float
    written: int = 0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def left_s(self) -> float:
        """How long the first pass takes yet if it goes on so; NaN before anything is done."""
        if not self.bytes_done:
            return float("nan")
        return self.elapsed_s * (self.bytes_total - self.bytes_done) / self.bytes_done


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class HeldOut:
    """How much is held out: so many tokens, or a share of all, or whichever is less."""

    tokens: int | None = None
    share: Fraction | None = None

    def of(self, tokens: int) -> int:
        found = [self.tokens] if self.tokens is not None else []
        if self.share is not None:
            found.append(-int(-self.share * tokens // 1))
        return max(1, min(found))


def parse_held_out(text: str | int | None) -> HeldOut:
    """`10M` tokens, `1%` of all, or (None) the default. Raises ValueError."""
    if text is None:
        return HeldOut(DEFAULT_TOKENS, DEFAULT_SHARE)
    if isinstance(text, str) and text.strip().endswith("%"):
        try:
            share = Fraction(text.strip()[:-1].strip()) / 100
        except ValueError:
            raise ValueError(f"{text!r} is no share: write 1% or .5%") from None
        if not 0 < share < 1:
            raise ValueError(f"{text!r} is not between 0 % and 100 %")
        return HeldOut(share=share)
    tokens = parse_count(text)
    if tokens < 1:
        raise ValueError(f"{text!r}: hold out one token or more")
    return HeldOut(tokens)


def prepare_data(
    sources: str | Path | Iterable[str | Path],
    *,
    out: str | Path,
    tokenizer: str | Path = BYTES,
    end_token: str | None = None,
    text_key: str = "text",
    document_separator: str | None = None,
    held_out: str | int | None = None,
    dtype: str = AUTO,
    workers: int | None = None,
    skip_bad: bool = False,
    replace: bool = False,
    progress: OnProgress | None = None,
) -> Prepared:
    """Make the token file `out` of text, JSON Lines, Parquet and Arrow files, and describe it.

    `sources` are files, folders, patterns and folders that `datasets` saved; a text file is one
    document, or several where `document_separator` divides it; of a line of JSON or a row the
    document is `text_key`. `tokenizer` is `bytes` or the file of a `tokenizers` tokenizer, whose
    token `end_token` ends a document. `held_out` is how many tokens (`10M`, or `1%`) stand at the
    end of the file in documents of their own. `dtype` follows from the vocabulary. The file does
    not depend on `workers`, by default as many as there are processors, at most 8. With
    `skip_bad` documents that cannot be read are counted and left out.

    All three files appear, or none; `replace` puts them in the place of older ones. Raises
    InputError with all that is wrong with the call, or with the first faults of the sources;
    UnavailableError where a package lacks.
    """
    out = Path(out)
    places = [sources] if isinstance(sources, (str, Path)) else list(sources)
    faults: list[Fault] = []

    def checked(call: Callable[[], T]) -> T | None:
        try:
            return call()
        except InputError as error:
            faults.extend(_within(error))
        return None

    files = checked(lambda: find_sources(places))
    named = checked(lambda: load_tokenizer(tokenizer, end_token=end_token))
    rules = Rules(text_key, document_separator.encode() if document_separator else None)
    if document_separator == "":
        faults.append(Fault("document_separator", "is empty"))
    try:
        wanted = parse_held_out(held_out)
    except ValueError as error:
        faults.append(Fault("held_out", str(error)))
    if workers is not None and workers < 1:
        faults.append(Fault("workers", f"{workers} is below 1"))
    faults += _faults_of_out(out, files or (), replace=replace)
    if files is not None:
        faults += check_columns(files, rules)
    chosen = checked(lambda: dtype_for(named, dtype)) if named is not None else None
    if faults or files is None or named is None or chosen is None:
        raise InputError("llem data prepare", faults)
    count = workers or default_workers(sum(file.bytes for file in files))
    try:
        with workspace(out) as folder:
            work = Work(rules, named, chosen, folder)
            gathered = _gather(files, work, workers=count, skip_bad=skip_bad, progress=progress)
            return _finish(gathered, wanted, work, files, out, progress)
    except OSError as error:
        # A write that failed for want of space does not say where.
        error.filename = error.filename or str(out)
        raise


def default_workers(size: int) -> int:
    """As many processes as there are processors here, and work for each in `size` bytes."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS, size // _WORKER_BYTES))


def dtype_for(tokenizer: Tokenizer, asked: str) -> str:
    """The smallest type of ids that holds the vocabulary, or the one asked for.

    Raises InputError where that cannot hold it.
    """
    holds = [name for name, size in ITEM_BYTES.items() if tokenizer.vocabulary <= 1 << 8 * size]
    if asked == AUTO:
        return holds[0]
    if asked not in ITEM_BYTES:
        text = f"{asked!r} is none of {AUTO}, {', '.join(ITEM_BYTES)}"
        raise InputError("the call", [Fault("dtype", text)])
    if asked not in holds:
        text = f"{asked} cannot hold a vocabulary of {tokenizer.vocabulary}"
        raise InputError("the call", [Fault("dtype", text, f"leave it out: {holds[0]}")])
    return asked


def _within(error: InputError) -> list[Fault]:
    """The faults of a part of the call, each with where it was found."""
    plain = error.source in ("the call", "the sources", "the tokenizer")
    return [
        fault if plain
        else Fault(f"{error.source}: {fault.path}" if fault.path else error.source, fault.message,
                   fault.hint)
        for fault in error.faults
    ]  # fmt: skip


def _faults_of_out(out: Path, files: Sequence[SourceFile], *, replace: bool) -> list[Fault]:
    if out.suffix in (".idx", ".json"):
        return [Fault("out", f"{out}: `{out.suffix}` is what stands beside it", "call it .bin")]
    made = (out, index_of(out), sidecar_of(out))
    sources = {os.path.realpath(file.path) for file in files}
    for path in made:
        if os.path.realpath(path) in sources:
            return [Fault("out", f"{path} is one of the sources")]
        if path.is_dir():
            return [Fault("out", f"{path} is a folder")]
    if not replace and (there := next((path for path in made if path.exists()), None)):
        return [Fault("out", f"{there} exists already", "give another, or `replace`")]
    return []


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    """All documents in the order of the sources, on disk: ids, tokens of each, hashes.

    `extents` are the units in that order: file and place of their ids, number of documents.
    """

    extents: tuple[tuple[str, int, int], ...]
    lengths: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    tokens: int
    documents: tuple[int, ...]
    text_bytes: int
    skipped: dict[str, int]
    far: Progress


def _gather(
    files: Sequence[SourceFile],
    work: Work,
    *,
    workers: int,
    skip_bad: bool,
    progress: OnProgress | None,
) -> _Gathered:
    began = time.monotonic()
    total = sum(file.bytes for file in files)
    documents = [0] * len(files)
    faults: list[Fault] = []
    extents: list[tuple[str, int, int]] = []
    # Lines, rows or parts before the unit, by source.
    before = [0] * len(files)
    done = counted = tokens = text_bytes = empty = bad = 0
    paths = {name: work.folder / name for name in ("lengths", "hashes")}
    with ExitStack() as stack:
        lengths, hashes = (stack.enter_context(open(p, "wb")) for p in paths.values())
        # Once something is wrong there will be no file: the rest is read for faults alone.
        units = (dataclasses.replace(u, encode=not faults) for u in units_of(files, work.rules))
        chunks = stack.enter_context(closing(chunks_of(units, work, workers=workers)))
        for chunk in chunks:
            if chunk.broken is not None:
                raise InputError("the sources", [*faults, chunk.broken])
            extents.append((*chunk.ids, len(chunk.lengths)))
            lengths.write(chunk.lengths.tobytes())
            hashes.write(chunk.hashes.tobytes())
            done += chunk.unit.weight
            tokens += int(chunk.lengths.sum())
            text_bytes += chunk.text_bytes
            empty += chunk.empty
            bad += chunk.bad
            for source, count in chunk.documents.items():
                documents[source] += count
            source = chunk.unit.sources[0]
            if not skip_bad:
                faults += [one.told(before[source]) for one in chunk.faults]
                if len(faults) >= MOST_FAULTS:
                    break
            before[source] += chunk.items
            counted += len(chunk.lengths)
            far = Progress(bytes_done=done, bytes_total=total, documents=counted, tokens=tokens,
                           elapsed_s=time.monotonic() - began)  # fmt: skip
            if progress is not None:
                progress(far)
    if faults:
        told = faults[:MOST_FAULTS]
        if len(faults) >= MOST_FAULTS:
            told.append(Fault("", "and perhaps more: the rest was not read"))
        raise InputError(f"the sources ({_HOW_TO_SKIP})", told)
    if not tokens:
        raise InputError("the sources", [f"hold no document ({empty} empty, {bad} unreadable)"])
    return _Gathered(
        extents=tuple(extents),
        far=far,
        lengths=np.memmap(paths["lengths"], dtype=np.int64, mode="r"),
        hashes=np.memmap(paths["hashes"], dtype=np.uint64, mode="r"),
        tokens=tokens,
        documents=tuple(documents),
        text_bytes=text_bytes,
        skipped={name: count for name, count in (("empty", empty), ("bad", bad)) if count},
    )


_HOW_TO_SKIP = "--skip-bad leaves such documents out and counts them"


def _finish(
    found: _Gathered,
    wanted: HeldOut,
    work: Work,
    files: Sequence[SourceFile],
    out: Path,
    progress: OnProgress | None,
) -> Prepared:
    last = last_held_out(found.hashes, found.lengths, tokens=min(wanted.of(found.tokens),
                                                                 found.tokens))  # fmt: skip
    held = found.hashes <= np.uint64(last)
    evaluation_tokens = int(found.lengths[held].sum())
    if evaluation_tokens == found.tokens:
        many = len(np.unique(found.hashes[: 1 << 20])) > 1
        text = f"{wanted.of(found.tokens)} of {found.tokens} tokens leave nothing to train on"
        hint = None
        if not many:
            text = "a split by document needs two different ones; there is one"
            hint = "`document_separator` divides a text file into several"
        raise InputError("llem data prepare", [Fault("held_out", text, hint)])
    unique = count_unique(found.hashes, found.lengths, last=last)
    made, index = work.folder / "tokens", work.folder / "index"
    digest, index_digest = _write(found, held, work, made, index, progress)
    prepared = Prepared(
        dtype=work.dtype,
        vocabulary=work.tokenizer.vocabulary,
        tokens=found.tokens,
        documents=len(found.lengths),
        evaluation_tokens=evaluation_tokens,
        evaluation_documents=int(held.sum()),
        unique_tokens=unique.tokens,
        unique_documents=unique.documents,
        training_unique_tokens=unique.training_tokens,
        text_bytes=found.text_bytes,
        fingerprint=fingerprint(made),
        sha256=digest,
        index_sha256=index_digest,
        tokenizer=work.tokenizer.name,
        text_key=work.rules.text_key,
        document_separator=work.rules.separator.decode() if work.rules.separator else None,
        sources=_sources(files, found.documents),
        skipped=found.skipped,
    )
    sidecar = work.folder / "sidecar"
    sidecar.write_text(prepared.to_text(), "utf-8")
    put_in_place({index_of(out): index, sidecar_of(out): sidecar, out: made})
    return prepared


def _sources(files: Sequence[SourceFile], documents: Sequence[int]) -> tuple[Source, ...]:
    """What the sidecar tells of the sources: each file, or of very many those of a place as one."""
    each = len(files) <= MOST_SOURCES
    found: dict[tuple[str, str], Source] = {}
    for file, count in zip(files, documents, strict=True):
        key = (file.path if each else file.place, file.format)
        before = found.get(key)
        found[key] = Source(
            path=key[0],
            format=file.format,
            files=1 + (before.files if before else 0),
            bytes=file.bytes + (before.bytes if before else 0),
            documents=count + (before.documents if before else 0),
        )
    return tuple(found.values())


def _write(
    found: _Gathered,
    held: NDArray[np.bool_],
    work: Work,
    made: Path,
    index: Path,
    progress: OnProgress | None,
) -> tuple[str, str]:
    """The token file, held-out documents last, and its index; the sha256 of each."""
    item_bytes = ITEM_BYTES[work.dtype]
    digest, index_digest = hashlib.sha256(), hashlib.sha256()
    with ExitStack() as stack:
        file, places = (stack.enter_context(open(path, "wb")) for path in (made, index))
        names = {name for name, _, _ in found.extents}
        ids = {name: stack.enter_context(open(work.folder / name, "rb")) for name in names}

        def put_places(values: NDArray[np.int64]) -> None:
            content = values.astype("<i8").tobytes()
            index_digest.update(content)
            places.write(content)

        put_places(np.zeros(1, dtype=np.int64))
        end = 0
        for side in (False, True):
            first = 0
            for name, place, documents in found.extents:
                lengths = found.lengths[first : first + documents]
                chosen = held[first : first + documents] == side
                first += documents
                if not chosen.any():
                    continue
                edges = item_bytes * np.concatenate(([0], np.cumsum(lengths)))
                # Read and not mapped: what was mapped would count as this process's memory.
                ids[name].seek(place)
                content = memoryview(ids[name].read(int(edges[-1])))
                for a, b in edges[runs_of(chosen)].tolist():
                    digest.update(content[a:b])
                    file.write(content[a:b])
                put_places(end + np.cumsum(lengths[chosen]))
                end += int(lengths[chosen].sum())
                if progress is not None:
                    progress(dataclasses.replace(found.far, written=end))
    return digest.hexdigest(), index_digest.hexdigest()


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, as hex digits. Raises LlemError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise LlemError(f"{path}: cannot be read: {error.strerror or error}") from None
