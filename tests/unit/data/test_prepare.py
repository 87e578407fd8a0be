"""Text becomes a token file, an index and a sidecar: the same ones, whoever does the work."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import all_held, documents, held, write_jsonl, write_parquet, write_saved

import llem
from llem.campaign.data.prepared import index_of, read_index, read_prepared, sidecar_of
from llem.campaign.data.tokenfile import fingerprint
from llem.data.tokenizer import _Bytes
from llem.errors import InputError, LlemError

TEXTS = documents()


def faults_of(call: Any, *words: Any, **options: Any) -> list[str]:
    with pytest.raises(InputError) as error:
        call(*words, **options)
    return [str(fault) for fault in error.value.faults]


class TestFormats:
    def test_a_folder_of_text_is_a_document_a_file(self, tmp_path: Path) -> None:
        folder = tmp_path / "texts"
        for i, text in enumerate(TEXTS):
            (folder / str(i % 3)).mkdir(parents=True, exist_ok=True)
            (folder / str(i % 3) / f"{i:02d}.txt").write_text(text, newline="")
        (folder / ".hidden").write_text("not this")
        made = llem.prepare_data(folder, out=tmp_path / "a.bin")
        trained, held_out = held(tmp_path / "a.bin")
        assert sorted(trained + held_out) == sorted(text.encode() for text in TEXTS)
        assert (made.dtype, made.vocabulary, made.tokenizer.end) == ("uint8", 256, 255)
        assert made.tokens == sum(len(text.encode()) + 1 for text in TEXTS)

    @pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz"])
    def test_json_lines_are_read_through_compression(self, tmp_path: Path, ending: str) -> None:
        source = write_jsonl(tmp_path / f"a.jsonl{ending}", TEXTS)
        made = llem.prepare_data(source, out=tmp_path / "a.bin")
        assert sorted(all_held(tmp_path / "a.bin")) == sorted(t.encode() for t in TEXTS)
        assert [(s.format, s.documents) for s in made.sources] == [("jsonl", 60)]

    def test_all_formats_hold_the_same_documents_to_the_byte(
        self, tmp_path: Path, arrow: Any
    ) -> None:
        write_jsonl(tmp_path / "a.jsonl", TEXTS)
        write_jsonl(tmp_path / "a.jsonl.zst", TEXTS)
        write_parquet(tmp_path / "a.parquet", TEXTS)
        write_saved(tmp_path / "saved", TEXTS)
        digests = set()
        for name in ("a.jsonl", "a.jsonl.zst", "a.parquet", "saved"):
            made = llem.prepare_data(tmp_path / name, out=tmp_path / f"{name}.bin")
            digests.add((made.sha256, made.index_sha256, made.text_bytes))
        assert len(digests) == 1

    def test_the_one_split_of_a_data_set_is_taken_and_one_of_several_must_be_named(
        self, tmp_path: Path, arrow: Any
    ) -> None:
        write_saved(tmp_path / "one" / "train", TEXTS)
        (tmp_path / "one" / "dataset_dict.json").write_text('{"splits": ["train"]}')
        assert llem.prepare_data(tmp_path / "one", out=tmp_path / "a.bin").documents == 60
        (tmp_path / "one" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
        told = faults_of(llem.prepare_data, tmp_path / "one", out=tmp_path / "b.bin")
        assert "holds the splits train, test" in told[0] and "one/train" in told[0]

    def test_patterns_and_mixed_sources_keep_their_order_and_are_read_once(
        self, tmp_path: Path
    ) -> None:
        for i in range(3):
            write_jsonl(tmp_path / f"{i}.jsonl", TEXTS[i::3])
        (tmp_path / "z.txt").write_text("last")
        places = [tmp_path / "1.jsonl", str(tmp_path / "*.jsonl"), tmp_path / "z.txt"]
        made = llem.prepare_data(places, out=tmp_path / "a.bin")
        assert [Path(s.path).name for s in made.sources] == [
            "1.jsonl", "0.jsonl", "2.jsonl", "z.txt",
        ]  # fmt: skip
        assert made.documents == 61

    @pytest.mark.parametrize("separator", ["\n\n", "#", "<end>"])
    def test_a_separator_divides_a_text_wherever_blocks_end(
        self, tmp_path: Path, separator: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        texts = [f"{i}" + "x\ny" * (i % 5) for i in range(40)]
        (tmp_path / "a.txt").write_text("\ufeff" + separator.join(texts))
        found = set()
        for size in (5, 7, 64, 1 << 20):
            monkeypatch.setattr("llem.data.documents.UNIT_BYTES", size)
            made = llem.prepare_data(tmp_path / "a.txt", out=tmp_path / f"{size}.bin",
                                     document_separator=separator, workers=1)  # fmt: skip
            found.add(made.sha256)
            assert sorted(all_held(tmp_path / f"{size}.bin")) == sorted(
                text.encode() for text in texts
            )
        assert len(found) == 1

    def test_links_are_followed_and_never_in_a_circle(self, tmp_path: Path) -> None:
        (tmp_path / "shards").mkdir()
        write_jsonl(tmp_path / "shards" / "a.jsonl", TEXTS)
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "de").symlink_to(tmp_path / "shards")
        (tmp_path / "shards" / "up").symlink_to(tmp_path / "corpus")
        made = llem.prepare_data(tmp_path / "corpus", out=tmp_path / "a.bin")
        assert made.documents == len(TEXTS)

    def test_parts_that_were_compressed_one_by_one_are_all_read(
        self, tmp_path: Path, arrow: Any
    ) -> None:
        """As `cat a.zst b.zst` makes them, and what compresses with several threads."""
        for ending in (".gz", ".zst"):
            halves = [write_jsonl(tmp_path / f"{i}{ending}", TEXTS[i::2]) for i in range(2)]
            path = tmp_path / f"both.jsonl{ending}"
            path.write_bytes(b"".join(half.read_bytes() for half in halves))
            made = llem.prepare_data(path, out=tmp_path / f"a{ending}.bin")
            assert made.documents == len(TEXTS)

    def test_an_absent_library_is_named_with_what_to_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        for name, options in (("a.parquet", {}), ("a.txt", {"tokenizer": tmp_path / "a.txt"})):
            (tmp_path / name).write_text("{}")
            with pytest.raises(LlemError) as error:
                llem.prepare_data(tmp_path / name, out=tmp_path / "a.bin", **options)
            assert "llem[data]" in (error.value.remedy or "")


class TestTheSame:
    def test_the_files_do_not_depend_on_the_number_of_workers(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Real processes; a source larger than a unit, so that several are under way."""
        monkeypatch.setattr("llem.data.documents.UNIT_BYTES", 2000)
        write_jsonl(tmp_path / "a.jsonl", documents(200))
        write_jsonl(tmp_path / "b.jsonl.gz", documents(100, seed=1))
        places = [tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"]
        contents = set()
        for workers in (1, 2):
            out = tmp_path / f"{workers}.bin"
            llem.prepare_data(places, out=out, workers=workers, held_out="20%")
            contents.add((out.read_bytes(), index_of(out).read_bytes(),
                          sidecar_of(out).read_bytes()))  # fmt: skip
        assert len(contents) == 1

    def test_nor_on_how_the_sources_are_cut_into_units(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        digests = set()
        for size in (1, 100, 1 << 20):
            monkeypatch.setattr("llem.data.documents.UNIT_BYTES", size)
            out = tmp_path / f"{size}.bin"
            made = llem.prepare_data(source, out=out, workers=1)
            digests.add((made.sha256, made.index_sha256, sidecar_of(out).read_bytes()))
        assert len(digests) == 1


class TestSidecar:
    def test_it_says_what_the_file_is(self, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", [*TEXTS, "", TEXTS[0], TEXTS[1]])
        out = tmp_path / "a.bin"
        made = llem.prepare_data(source, out=out, held_out="20%")
        assert read_prepared(out) == made
        assert made.sha256 == hashlib.sha256(out.read_bytes()).hexdigest()
        assert made.index_sha256 == hashlib.sha256(index_of(out).read_bytes()).hexdigest()
        assert made.fingerprint == fingerprint(out)
        assert made.tokens == out.stat().st_size == read_index(out, tokens=made.tokens)[-1]
        assert (made.documents, made.unique_documents) == (62, 60)
        assert made.unique_tokens == sum(len(text.encode()) + 1 for text in TEXTS)
        assert made.skipped == {"empty": 1}
        assert made.text_bytes == made.tokens - made.documents
        trained, _ = held(out)
        assert made.training_unique_tokens == sum(len(text) + 1 for text in set(trained))

    def test_of_very_many_files_it_tells_the_places(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llem.data.prepare.MOST_SOURCES", 10)
        (tmp_path / "texts").mkdir()
        for i, text in enumerate(TEXTS):
            (tmp_path / "texts" / f"{i}.txt").write_text(text)
        write_jsonl(tmp_path / "texts" / "a.jsonl", TEXTS)
        made = llem.prepare_data(tmp_path / "texts", out=tmp_path / "a.bin")
        told = [(s.path, s.format, s.files, s.documents) for s in made.sources]
        place = str(tmp_path / "texts")
        assert sorted(told) == [(place, "jsonl", 1, 60), (place, "text", 60, 60)]

    def test_a_file_that_changed_afterwards_is_refused(self, tmp_path: Path) -> None:
        out = tmp_path / "a.bin"
        llem.prepare_data(write_jsonl(tmp_path / "a.jsonl", TEXTS), out=out)
        with open(out, "r+b") as file:
            file.write(b"\x00")
        assert "it changed after `llem data prepare`" in faults_of(read_prepared, out)[0]
        with open(out, "ab") as file:
            file.write(b"\x00")
        assert "bytes, not" in faults_of(read_prepared, out)[0]

    def test_one_that_is_none_is_refused(self, tmp_path: Path) -> None:
        out = tmp_path / "a.bin"
        for text in ("no json", '{"schema": "llem-data-0"}', '{"schema": "llem-data-1"}', "[]"):
            sidecar_of(out).write_text(text)
            with pytest.raises(InputError):
                read_prepared(out)

    def test_the_index_of_another_file_is_refused(self, tmp_path: Path) -> None:
        out = tmp_path / "a.bin"
        made = llem.prepare_data(write_jsonl(tmp_path / "a.jsonl", TEXTS), out=out)
        assert "is not the index" in faults_of(read_index, out, tokens=made.tokens - 1)[0]
        index_of(out).unlink()
        assert "cannot be read" in faults_of(read_index, out, tokens=made.tokens)[0]


class TestHeldOut:
    def test_copies_of_a_document_are_on_one_side(self, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS * 3)
        llem.prepare_data(source, out=tmp_path / "a.bin", held_out="30%")
        trained, held_out = held(tmp_path / "a.bin")
        assert held_out and not set(trained) & set(held_out)

    @pytest.mark.parametrize("asked", [1, 500, "1k", "10%", "33.3%"])
    def test_as_few_documents_as_have_the_tokens_asked_for(
        self, tmp_path: Path, asked: str | int
    ) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        made = llem.prepare_data(source, out=tmp_path / "a.bin", held_out=asked)
        wanted = {1: 1, 500: 500, "1k": 1000}.get(asked)
        if wanted is None:
            wanted = math.ceil(float(str(asked)[:-1]) / 100 * made.tokens)
        _, held_out = held(tmp_path / "a.bin")
        largest = max(len(text) + 1 for text in held_out)
        assert wanted <= made.evaluation_tokens < wanted + largest

    def test_the_choice_is_that_of_the_content_and_not_of_its_place(self, tmp_path: Path) -> None:
        sides = []
        for i, texts in enumerate((TEXTS, TEXTS[::-1])):
            source = write_jsonl(tmp_path / f"{i}.jsonl", texts)
            llem.prepare_data(source, out=tmp_path / f"{i}.bin", held_out="25%")
            sides.append(set(held(tmp_path / f"{i}.bin")[1]))
        assert sides[0] == sides[1]

    def test_a_single_document_cannot_be_split(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("all of it")
        told = faults_of(llem.prepare_data, tmp_path / "a.txt", out=tmp_path / "a.bin")
        assert "there is one" in told[0] and "document_separator" in told[0]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]

    def test_something_must_be_left_to_train_on(self, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        told = faults_of(llem.prepare_data, source, out=tmp_path / "a.bin", held_out="1G")
        assert "leave nothing to train on" in told[0]


class TestFaults:
    BAD = (
        b'{"text": "good"}\n{"txt": 1, "n": 2}\nnot json\n\n[1]\n{"text": null}\n{"text": 5}\n'
        b'{"text": "\\ud800"}\n{"text": "\xff"}\n{"text": "fine"}\n'
    )

    def test_each_bad_line_is_named_with_its_number_and_key(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_bytes(self.BAD)
        told = faults_of(llem.prepare_data, path, out=tmp_path / "a.bin")
        assert [text.removeprefix(f"{path}:").split(":")[0] for text in told] == [
            "2", "3", "5", "6", "7", "8", "9",
        ]  # fmt: skip
        assert "no key 'text' (did you mean 'txt'?)" in told[0]
        assert "is not JSON: Expecting value (column 1)" in told[1]
        assert "is a list, not an object" in told[2]
        assert "text: is null, not text" in told[3]
        assert "half a pair of surrogates" in told[5]
        assert "is not UTF-8: byte 0xff at 10" in told[6]
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]

    def test_they_can_be_left_out_and_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(self.BAD)
        made = llem.prepare_data(tmp_path / "a.jsonl", out=tmp_path / "a.bin", skip_bad=True)
        assert made.skipped == {"bad": 7}
        assert sorted(all_held(tmp_path / "a.bin")) == [b"fine", b"good"]

    def test_nothing_is_encoded_once_something_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What would take hours is no more than read; later faults are told all the same."""
        encoded: list[int] = []
        monkeypatch.setattr("llem.data.tokenizer._Bytes.encode",
                            lambda self, texts, real=_Bytes.encode: (
                                encoded.append(len(texts)), real(self, texts))[1])  # fmt: skip
        for i, line in enumerate((b'{"text": "good"}', b"bad", b'{"text": "good"}', b"worse")):
            (tmp_path / f"{i}.jsonl").write_bytes(line)
        told = faults_of(llem.prepare_data, tmp_path, out=tmp_path / "o" / "a.bin", workers=1)
        assert [Path(text.partition(":")[0]).name for text in told] == ["1.jsonl", "3.jsonl"]
        assert encoded == [1, 0]

    def test_reading_ends_when_enough_is_wrong(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("bad\n" * 1000)
        told = faults_of(llem.prepare_data, tmp_path / "a.jsonl", out=tmp_path / "a.bin")
        assert len(told) == 21 and "the rest was not read" in told[-1]

    @pytest.mark.parametrize("size", [17, 18, 19, 100])
    def test_line_numbers_hold_wherever_units_end(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr("llem.data.documents.UNIT_BYTES", size)
        content = b'{"text": "good"}\n\n' * 50 + b"bad\n" + b'{"text": "good"}\n' * 9 + b"worse"
        (tmp_path / "a.jsonl").write_bytes(content)
        (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(content))
        places = [tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"]
        told = faults_of(llem.prepare_data, places, out=tmp_path / "a.bin")
        assert [text.partition(": ")[0] for text in told] == [
            f"{place}:{line}" for place in places for line in (101, 111)
        ]

    def test_rows_and_columns_are_named_too(self, tmp_path: Path, arrow: Any) -> None:
        write_parquet(tmp_path / "a.parquet", [*TEXTS[:9], None])
        told = faults_of(llem.prepare_data, tmp_path / "a.parquet", out=tmp_path / "a.bin")
        assert "a.parquet:row 10: text: is null" in told[0]
        write_parquet(tmp_path / "b.parquet", TEXTS, key="body")
        (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
        told = faults_of(llem.prepare_data, [tmp_path / "b.parquet", tmp_path / "c.parquet"],
                         out=tmp_path / "a.bin")  # fmt: skip
        assert "no column 'text' (its columns: body, n)" in told[0]
        assert "is no parquet file" in told[1]
        told = faults_of(llem.prepare_data, tmp_path / "b.parquet", text_key="n",
                         out=tmp_path / "a.bin")  # fmt: skip
        assert "column 'n' is int64, not text" in told[0]

    def test_all_that_is_wrong_with_a_call_is_told_at_once(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text("{}")
        told = faults_of(
            llem.prepare_data, [tmp_path / "gone", str(tmp_path / "*.none")],
            out=tmp_path / "a.bin", held_out="200%", workers=0, dtype="int8",
            document_separator="",
        )  # fmt: skip
        assert len(told) == 6
        words = ("no such file", "no file is called so", "empty", "not between", "below 1", "int8")
        assert all(any(word in text for text in told) for word in words)

    def test_text_in_another_encoding_says_where(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes("Bär".encode("latin-1"))
        told = faults_of(llem.prepare_data, tmp_path / "a.txt", out=tmp_path / "a.bin")
        assert "is not UTF-8: byte 0xe4 at 1" in told[0]

    def test_an_older_file_is_not_written_over_unasked(self, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        out = tmp_path / "a.bin"
        llem.prepare_data(source, out=out)
        assert "exists already" in faults_of(llem.prepare_data, source, out=out)[0]
        made = llem.prepare_data(source, out=out, replace=True, held_out="40%")
        assert read_prepared(out) == made


class TestWholeOrNotAtAll:
    @pytest.mark.skipif(os.geteuid() != 0, reason="a small disk can be mounted by root alone")
    def test_a_full_disk_ends_it_in_one_line_and_with_nothing_left(self, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", documents(2000))
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True,
            check=False,
        )  # fmt: skip
        if mounted.returncode:
            pytest.skip(f"no small disk: {mounted.stderr.decode()}")
        try:
            words = ["data", "prepare", source, "--out", disk / "a.bin"]
            done = subprocess.run([sys.executable, "-m", "llem", *words], capture_output=True,
                                  text=True, check=False)  # fmt: skip
            assert done.returncode == 1
            assert f"llem: {disk / 'a.bin'}: No space left on device" in done.stderr
            assert list(disk.iterdir()) == []
        finally:
            subprocess.run(["umount", disk], check=True)

    def test_a_failure_leaves_the_folder_and_an_older_file_as_they_were(
        self, tmp_path: Path
    ) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        out = tmp_path / "a.bin"
        llem.prepare_data(source, out=out)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        (tmp_path / "b.jsonl").write_text("bad\n")
        with pytest.raises(InputError):
            llem.prepare_data([source, tmp_path / "b.jsonl"], out=out, replace=True)
        (tmp_path / "b.jsonl").unlink()
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    def test_whatever_ends_it_nothing_unfinished_is_there_and_it_can_be_called_again(
        self, tmp_path: Path, number: int
    ) -> None:
        """A pipe for a source: the call waits for it, and is ended while it does."""
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        out = tmp_path / "out" / "a.bin"
        code = (
            "import sys, llem.data.documents as d\n"
            "def slow(source, first, count):\n"
            "    sys.stderr.write('reading\\n'); sys.stderr.flush()\n"
            "    import time; time.sleep(60)\n"
            "d._read_span = slow\n"
            "from llem.cli import main; sys.exit(main(sys.argv[1:]))\n"
        )
        words = ["data", "prepare", str(source), "--out", str(out), "--workers", "1"]
        call = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE,
                                text=True)  # fmt: skip
        assert call.stderr is not None and call.stderr.readline() == "reading\n"
        second = subprocess.run([sys.executable, "-m", "llem", *words], capture_output=True,
                                text=True, check=False)  # fmt: skip
        assert second.returncode == 1 and "another process is preparing it" in second.stderr
        call.send_signal(number)
        call.communicate()
        assert call.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}.get(number, -number)
        assert not out.exists()
        if number != signal.SIGKILL:
            assert list(out.parent.iterdir()) == []
        llem.prepare_data(source, out=out)
        assert sorted(p.name for p in out.parent.iterdir()) == ["a.bin", "a.bin.json", "a.idx"]

    @pytest.mark.slow
    def test_a_worker_that_is_killed_ends_the_call(self, tmp_path: Path) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        code = (
            "import os, sys, threading, time, multiprocessing as m, llem\n"
            "def kill():\n"
            "    while not m.active_children(): time.sleep(.01)\n"
            "    m.active_children()[0].kill()\n"
            "threading.Thread(target=kill, daemon=True).start()\n"
            "try: llem.prepare_data(sys.argv[1], out=sys.argv[2], workers=2)\n"
            "except llem.LlemError as error: print(error.message)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, source, tmp_path / "a.bin"],
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert "a worker process ended before its work did" in done.stdout, done.stderr
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]


def test_progress_tells_bytes_tokens_and_what_is_left(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / f"{i}.jsonl", TEXTS) for i in range(3)]
    seen: list[Any] = []
    made = llem.prepare_data(sources, out=tmp_path / "a.bin", progress=seen.append, workers=1)
    total = sum(path.stat().st_size for path in sources)
    first, second = seen[:3], seen[3:]
    assert [one.bytes_done for one in first] == [total // 3, total // 3 * 2, total]
    assert first[-1].bytes_total == total and first[-1].tokens == made.tokens
    assert first[-1].left_s == 0 and first[0].left_s > 0 < first[-1].tokens_per_s
    assert [one.written for one in second] == sorted(one.written for one in second)
    assert second[-1].written == made.tokens


def test_ids_wider_than_they_need_be_can_be_asked_for(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    made = llem.prepare_data(source, out=tmp_path / "a.bin", dtype="uint32")
    assert (tmp_path / "a.bin").stat().st_size == 4 * made.tokens
    assert sorted(all_held(tmp_path / "a.bin")) == sorted(text.encode() for text in TEXTS)


def test_the_sidecar_is_json_that_others_can_read(tmp_path: Path) -> None:
    llem.prepare_data(write_jsonl(tmp_path / "a.jsonl", TEXTS), out=tmp_path / "a.bin")
    values = json.loads((tmp_path / "a.bin.json").read_text())
    assert values["schema"] == "llem-data-1" and values["tokenizer"]["name"] == "bytes"


class TestTokenizer:
    def test_documents_come_back_from_their_ids(self, tmp_path: Path, train_tokenizer: Any) -> None:
        import tokenizers

        file = train_tokenizer(TEXTS, "<|endoftext|>")
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        out = tmp_path / "a.bin"
        made = llem.prepare_data(source, out=out, tokenizer=file)
        assert (made.dtype, made.vocabulary) == ("uint16", 300)
        assert made.tokenizer.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        edges = read_index(out, tokens=made.tokens)
        ids = np.fromfile(out, dtype="<u2")
        library = tokenizers.Tokenizer.from_file(str(file))
        # A text that spells <|endoftext|> has it as text: its id ends documents alone.
        assert np.array_equal(np.flatnonzero(ids == made.tokenizer.end), edges[1:] - 1)
        texts = [library.decode(ids[a : b - 1].tolist()) for a, b in pairwise(edges)]
        assert sorted(texts) == sorted(TEXTS)

    def test_the_files_do_not_depend_on_the_number_of_workers(
        self, tmp_path: Path, train_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("llem.data.documents.UNIT_BYTES", 3000)
        file = train_tokenizer(TEXTS, "</s>")
        source = write_jsonl(tmp_path / "a.jsonl", documents(200))
        digests = {
            llem.prepare_data(source, out=tmp_path / f"{n}.bin", tokenizer=file, workers=n).sha256
            for n in (1, 2)
        }
        assert len(digests) == 1

    def test_the_end_of_text_is_found_or_named(self, tmp_path: Path, train_tokenizer: Any) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)

        def told(*special: str, end: str | None = None) -> str:
            file = train_tokenizer(TEXTS, *special)
            return faults_of(llem.prepare_data, source, out=tmp_path / "a.bin", tokenizer=file,
                             end_token=end)[0]  # fmt: skip

        assert "no token of it is known to end a document" in told("<pad>")
        assert "<pad>" in told("<pad>")
        assert "several that end a document: </s>, <eos>" in told("<eos>", "</s>")
        assert "did you mean '</s>'?" in told("</s>", end="<s>")
        file = train_tokenizer(TEXTS, "<eos>", "</s>")
        made = llem.prepare_data(source, out=tmp_path / "a.bin", tokenizer=file, end_token="</s>")
        assert (made.tokenizer.end, made.tokenizer.end_token) == (1, "</s>")

    def test_ids_must_fit(self, tmp_path: Path, train_tokenizer: Any) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        file = train_tokenizer(TEXTS, "</s>")
        told = faults_of(llem.prepare_data, source, out=tmp_path / "a.bin", tokenizer=file,
                         dtype="uint8")  # fmt: skip
        assert "uint8 cannot hold a vocabulary of 300" in told[0]

    def test_what_is_no_tokenizer_is_named(self, tmp_path: Path, train_tokenizer: Any) -> None:
        source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
        for tokenizer in (source, tmp_path / "gone.json"):
            told = faults_of(llem.prepare_data, source, out=tmp_path / "a.bin", tokenizer=tokenizer)
            assert tokenizer.name in told[0]


def test_two_processors_are_used_where_there_is_work(tmp_path: Path) -> None:
    from llem.data.prepare import default_workers

    have = len(os.sched_getaffinity(0))
    assert default_workers(1000) == 1
    assert default_workers(1 << 40) == min(have, 8)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_sources(tmp_path: Path) -> None:
    """Peak of processes of their own, which a large heap here does not reach."""
    code = (
        "import resource, sys, llem\n"
        "llem.prepare_data(sys.argv[1], out=sys.argv[2], workers=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for megabytes in (8, 80):
        source = tmp_path / f"{megabytes}.jsonl"
        with open(source, "w") as file:
            for i in range(megabytes * 50):
                file.write(json.dumps({"text": f"{i} " + "word " * 4000}) + "\n")
        words = [sys.executable, "-c", code, str(source), str(tmp_path / f"{megabytes}.bin")]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) / 1024)
    assert peaks[1] < peaks[0] + 15
