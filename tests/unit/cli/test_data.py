"""`llem data` as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def llem(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llem", "data", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    chapters = [f"chapter {i}\n" + "word " * (10 + i) for i in range(30)]
    (tmp_path / "book.txt").write_text("\n\n".join([*chapters, chapters[0]]))
    return tmp_path


def test_what_is_prepared_is_told_and_shown_again(book: Path) -> None:
    words = ("prepare", "book.txt", "--document-separator", r"\n\n", "--held-out", "10%",
             "--out", "de/book.bin")  # fmt: skip
    made = llem(*words, cwd=book)
    assert made.returncode == 0, made.stderr
    assert "data: {path: de/book.bin}" in made.stderr
    shown = llem("show", "de/book.bin", "--check", cwd=book)
    assert shown.returncode == 0 and "(checked)" in shown.stdout
    assert shown.stdout.replace(" (checked)", "") == made.stdout
    for words in ("book.txt    text", "bytes, 256 ids", "in copies", "30 documents"):
        assert words in shown.stdout


def test_for_machines_it_is_json_alone(book: Path) -> None:
    words = ("prepare", "book.txt", "--document-separator", r"\n\n", "--out", "b.bin", "--json")
    made = json.loads(llem(*words, cwd=book).stdout)
    assert (made["documents"], made["unique_documents"], made["vocabulary"]) == (31, 30, 256)
    assert json.loads(llem("show", "b.bin", "--json", cwd=book).stdout) == made


def test_a_file_with_another_content_fails_its_check(book: Path) -> None:
    llem("prepare", "book.txt", "--document-separator", r"\n\n", "--out", "b.bin", cwd=book)
    index = book / "b.idx"
    content = bytearray(index.read_bytes())
    content[8] ^= 1
    index.write_bytes(content)
    done = llem("show", "b.bin", "--check", cwd=book)
    assert done.returncode == 1 and "b.idx: its sha256 is" in done.stderr
    (book / "b.bin").write_bytes(b"other")
    done = llem("show", "b.bin", cwd=book)
    assert done.returncode == 2 and "bytes, not" in done.stderr


def test_a_wrong_call_is_told_with_every_fault(book: Path) -> None:
    done = llem("prepare", "bok.txt", "--out", "b.bin", "--held-out", "much", cwd=book)
    assert done.returncode == 2
    assert "bok.txt: there is no such file" in done.stderr and "held_out" in done.stderr
    done = llem("show", "book.txt", cwd=book)
    assert done.returncode == 2 and "`llem data prepare` writes it" in done.stderr


@pytest.mark.parametrize("words", [("--help",), ("prepare", "--help")])
def test_help_has_examples(words: tuple[str, ...], tmp_path: Path) -> None:
    done = llem(*words, cwd=tmp_path)
    assert done.returncode == 0 and "llem data prepare 'de/*.jsonl.gz'" in done.stdout
