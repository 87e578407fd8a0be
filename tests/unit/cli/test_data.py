"""`llem data`: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from llem.cli import main

Llem = Callable[..., SimpleNamespace]


@pytest.fixture
def llem(capsys: pytest.CaptureFixture[str]) -> Llem:
    def call(*words: object) -> SimpleNamespace:
        status = main(["data", *map(str, words)])
        printed = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=printed.out, stderr=printed.err)

    return call


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    chapters = [f"chapter {i}\n" + "word " * (10 + i) for i in range(30)]
    (tmp_path / "book.txt").write_text("\n\n".join([*chapters, chapters[0]]))
    return tmp_path


def test_what_is_prepared_is_told_and_shown_again(book: Path, llem: Llem) -> None:
    words = ("prepare", "book.txt", "--document-separator", r"\n\n", "--held-out", "10%",
             "--out", "de/book.bin")  # fmt: skip
    made = llem(*words)
    assert made.returncode == 0, made.stderr
    assert "data: {path: de/book.bin}" in made.stderr
    shown = llem("show", "de/book.bin", "--check")
    assert shown.returncode == 0 and "(checked)" in shown.stdout
    assert shown.stdout.replace(" (checked)", "") == made.stdout
    for words in ("book.txt    text", "bytes, 256 ids", "in copies", "30 documents"):
        assert words in shown.stdout


def test_for_machines_it_is_json_alone(book: Path, llem: Llem) -> None:
    words = ("prepare", "book.txt", "--document-separator", r"\n\n", "--out", "b.bin", "--json")
    made = json.loads(llem(*words).stdout)
    assert (made["documents"], made["unique_documents"], made["vocabulary"]) == (31, 30, 256)
    assert json.loads(llem("show", "b.bin", "--json").stdout) == made


def test_a_file_with_another_content_fails_its_check(book: Path, llem: Llem) -> None:
    llem("prepare", "book.txt", "--document-separator", r"\n\n", "--out", "b.bin")
    index = book / "b.idx"
    content = bytearray(index.read_bytes())
    content[8] ^= 1
    index.write_bytes(content)
    done = llem("show", "b.bin", "--check")
    assert done.returncode == 1 and "b.idx: its sha256 is" in done.stderr
    (book / "b.bin").write_bytes(b"other")
    done = llem("show", "b.bin")
    assert done.returncode == 2 and "bytes, not" in done.stderr


def test_what_is_not_there_or_was_not_prepared_is_told_by_its_name(book: Path, llem: Llem) -> None:
    gone = llem("show", "nope.bin")
    assert (gone.returncode, "nope.bin: is absent" in gone.stderr) == (2, True), gone.stderr
    raw = llem("show", "book.txt")
    assert raw.returncode == 2
    assert "book.txt.json: is absent (`llem data prepare` writes it" in raw.stderr


def test_a_wrong_call_is_told_with_every_fault(book: Path, llem: Llem) -> None:
    done = llem("prepare", "bok.txt", "--out", "b.bin", "--held-out", "much")
    assert done.returncode == 2
    assert "bok.txt: there is no such file" in done.stderr and "held_out" in done.stderr
    done = llem("show", "book.txt")
    assert done.returncode == 2 and "`llem data prepare` writes it" in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("prepare", "--help")])
def test_help_has_examples(words: tuple[str, ...], llem: Llem) -> None:
    done = llem(*words)
    assert done.returncode == 0 and "llem data prepare 'de/*.jsonl.gz'" in done.stdout
