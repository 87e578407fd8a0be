"""`llem data`."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from llem._numerals import format_count, percent
from llem.cli._bar import Bar
from llem.cli._command import add_json, note, print_json
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from llem.campaign.data.prepared import Prepared
    from llem.data import Progress

EXAMPLE = """  llem data prepare corpus/ --out data/de.bin     # text as bytes, 256 ids
  llem data prepare 'de/*.jsonl.gz' --tokenizer tokenizer.json --out data/de.bin
  llem data prepare wiki.parquet saved/ --text-key body --out data/de.bin
  llem data prepare book.txt --document-separator '\\n\\n' --out book.bin
  llem data prepare book.txt --held-out 2% --out data/book.bin
  llem data show data/de.bin --check
then, in campaign.yaml:
  data: {path: data/de.bin}"""

PLAIN_LINE_S = 15.0
# Of many sources so many are shown.
SOURCES_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="prepare|show")
    prepare = actions.add_parser(
        "prepare", help="text, JSON Lines, Parquet or saved data sets -> a token file",
        epilog=f"example:\n{EXAMPLE}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = prepare.add_argument
    add("sources", nargs="+", metavar="SOURCE",
        help="files, folders, patterns, folders of datasets' save_to_disk")  # fmt: skip
    add("--out", type=Path, required=True, metavar="FILE.bin")  # fmt: skip
    add("--tokenizer", default="bytes", metavar="bytes|FILE.json",
        help="a file of the tokenizers library (default: bytes)")  # fmt: skip
    add("--end-token", metavar="TOKEN",
        help="the token that ends a document (default: the one of a usual name)")  # fmt: skip
    add("--text-key", default="text", metavar="KEY",
        help="key or column of the text (default: text)")  # fmt: skip
    add("--document-separator", metavar="TEXT",
        help=r"divides a text file into documents; \n and \t are understood")  # fmt: skip
    add("--held-out", metavar="10M|1%",
        help="tokens, or the share, held out in documents of their own (default: 5%% and at most "
        "10M)")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="processes (default: one a processor, at most 8); the file is the same")  # fmt: skip
    add("--dtype", default="auto", metavar="auto|uint8|uint16|uint32",
        help="type of the ids (default: the smallest that fits)")  # fmt: skip
    add("--skip-bad", action="store_true",
        help="leave documents out that cannot be read, and count them")  # fmt: skip
    add("--replace", action="store_true", help="put it in another one's place")  # fmt: skip
    show = actions.add_parser("show", help="say what a token file holds")  # fmt: skip
    show.add_argument("file", type=Path, metavar="FILE.bin")  # fmt: skip
    show.add_argument(
        "--check", action="store_true", help="read all of it, and compare it with its hash"
    )
    for action in (prepare, show):
        add_json(action)


def run(args: argparse.Namespace) -> int:
    return _prepare(args) if args.action == "prepare" else _show(args)


def _prepare(args: argparse.Namespace) -> int:
    from llem.data import prepare_data

    with _ending_on_term(), _Told() as bar:
        made = prepare_data(
            args.sources, out=args.out, tokenizer=args.tokenizer, end_token=args.end_token,
            text_key=args.text_key, document_separator=_unescaped(args.document_separator),
            held_out=args.held_out, dtype=args.dtype, workers=args.workers,
            skip_bad=args.skip_bad, replace=args.replace, progress=bar,
        )  # fmt: skip
    _tell(args.out, made, as_json=args.json)
    note(f"written: {args.out}; next, in campaign.yaml: data: {{path: {args.out}}}")
    return 0


def _show(args: argparse.Namespace) -> int:
    from llem.campaign.data.prepared import index_of, read_prepared, sidecar_of

    found = read_prepared(args.file)
    if found is None and not args.file.is_file():
        raise InputError(str(args.file), ["is absent"])
    if found is None:
        hint = "`llem data prepare` writes it beside the token file"
        raise InputError(str(args.file), [Fault(sidecar_of(args.file).name, "is absent", hint)])
    wrong = []
    if args.check:
        from llem.data import sha256_of

        for path, expected in (
            (args.file, found.sha256),
            (index_of(args.file), found.index_sha256),
        ):
            if (digest := sha256_of(path)) != expected:
                wrong.append(f"{path}: its sha256 is {digest}, prepared was {expected}")
    _tell(args.file, found, as_json=args.json, checked=args.check and not wrong)
    for text in wrong:
        note(text)
    return 1 if wrong else 0


def _unescaped(text: str | None) -> str | None:
    r"""`\n`, `\t`, `\r`, `\\` and `\xff` as in Python; all else as it is."""
    if text is None or "\\" not in text:
        return text
    try:
        return text.encode("latin-1", "backslashreplace").decode("unicode_escape")
    except UnicodeDecodeError as error:
        raise InputError("the call", [Fault("--document-separator", str(error))]) from None


def _tell(path: Path, found: Prepared, *, as_json: bool, checked: bool = False) -> None:
    if as_json:
        print_json({"path": str(path), **found.to_dict()})
        return
    from llem._numerals import format_si
    from llem.cli._table import lines, table

    def count(documents: int, tokens: int) -> str:
        return f"{documents:,} documents, {tokens:,} tokens"

    shown = found.sources[:SOURCES_SHOWN]
    table(
        ["source", "format", "files", "bytes", "documents"],
        [[s.path, s.format, s.files, f"{s.bytes:,}", f"{s.documents:,}"] for s in shown],
    )
    if len(found.sources) > len(shown):
        print(f"and {len(found.sources) - len(shown)} sources more")
    print()
    name = found.tokenizer
    twice = found.tokens - found.unique_tokens
    size = format_si(path.stat().st_size, "B")
    per_token = found.text_bytes / max(1, found.tokens - found.documents)
    ids = f"{name.name}, {found.vocabulary:,} ids, {per_token:.3g} bytes a token"
    copies = (
        f": {percent(twice / found.tokens, places=2)} of all tokens are in copies" if twice else ""
    )
    trained = found.documents - found.evaluation_documents
    rows = [
        ("file", f"{path}, {found.dtype}, {size}"),
        ("tokenizer", f"{ids}; {name.end_token} ({name.end}) ends a document"),
        ("training", count(trained, found.training_tokens)),
        ("held out", count(found.evaluation_documents, found.evaluation_tokens)),
        ("unique", count(found.unique_documents, found.unique_tokens) + copies),
        ("sha256", found.sha256 + (" (checked)" if checked else "")),
    ]
    if found.skipped:
        words = {"empty": "empty", "bad": "that cannot be read"}
        text = ", ".join(f"{n:,} {words.get(k, k)}" for k, n in found.skipped.items())
        rows.append(("left out", f"documents: {text}"))
    lines(rows)


@contextmanager
def _ending_on_term() -> Iterator[None]:
    """SIGTERM ends the call as Ctrl-C does, with its unfinished files cleared away."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Told(Bar):
    """Tokens per second and the time left: a bar in a terminal, else a line now and then."""

    columns = ("BarColumn", "TaskProgressColumn", "", "TimeRemainingColumn")

    def __init__(self) -> None:
        super().__init__()
        self._told = time.monotonic()

    def __call__(self, found: Progress) -> None:
        from llem._numerals import format_duration, format_si

        share, words = found.bytes_done / max(1, found.bytes_total), "writing"
        left = ""
        if found.written:
            share = found.written / found.tokens
        else:
            speed = f"{format_si(found.tokens_per_s)} tokens/s"
            words = f"{format_count(found.tokens)} tokens, {speed}"
            left = f", {format_duration(found.left_s)} left"
        if sys.stderr.isatty():
            self.draw(words, done=share, total=1.0)
        elif time.monotonic() - self._told >= PLAIN_LINE_S:
            self._told = time.monotonic()
            note(f"[{percent(share, places=0):>5}] {words}{left}")
