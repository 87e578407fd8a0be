"""Which tokens each rank reads, and token files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llem.campaign import Run, TokenData, mixture_of
from llem.campaign.data.prepared import index_of
from llem.campaign.data.tokenfile import fingerprint, token_file, write_tokens
from llem.errors import InputError
from llem.training.tokens.data import Windows, share_of, verify_content

CONTEXT = 32
BATCH = 16 * CONTEXT


@pytest.fixture
def numbered(tmp_path: Path) -> TokenData:
    """Tokens that say where they stand, so that windows can be told apart."""
    path = tmp_path / "numbered.bin"
    write_tokens(path, np.arange(100 * CONTEXT + 2), dtype="uint16")
    return token_file(path, dtype="uint16", evaluation_tokens=10 * CONTEXT + 1)


@pytest.fixture
def numbered_run(make_run: Callable[..., Run], numbered: TokenData) -> Callable[..., Run]:
    def make(**options: object) -> Run:
        run = make_run(data=numbered, **options)
        return replace(run, model=replace(run.model, vocabulary=2**16))

    return make


def global_batch(run: Run, step: int, *, ranks: int) -> tuple[list[int], int]:
    """First tokens of all windows that `ranks` ranks read in `step`, and the unique tokens."""
    starts: list[int] = []
    unique = 0
    for rank in range(ranks):
        batch = Windows(run).batch(step, share_of(run, rank=rank, ranks=ranks))
        starts += [int(window[0]) for inputs, _ in batch.micros for window in inputs]
        unique += batch.tokens_unique
    return sorted(starts), unique


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("grad_accum", [1, 2])
@pytest.mark.parametrize("step", [0, 3, 5, 9])
def test_the_global_batch_does_not_depend_on_the_layout(
    numbered_run: Callable[..., Run], ranks: int, grad_accum: int, step: int
) -> None:
    run = numbered_run(ranks=ranks, grad_accum=grad_accum)
    assert global_batch(run, step, ranks=ranks) == global_batch(numbered_run(), step, ranks=1)


def test_an_epoch_reads_every_window_once_and_later_ones_are_not_unique(
    numbered_run: Callable[..., Run],
) -> None:
    run = numbered_run(steps=12)
    windows = Windows(run)
    assert windows.windows == 90
    batches = [windows.batch(step, share_of(run, rank=0, ranks=1)) for step in range(12)]
    starts = [int(window[0]) for batch in batches for window in batch.micros[0][0]]
    assert sorted(starts[:90]) == [i * CONTEXT for i in range(90)]
    assert [b.tokens_unique // CONTEXT for b in batches] == [16] * 5 + [10] + [0] * 6
    assert sum(b.tokens_unique for b in batches) == 90 * CONTEXT


def test_targets_are_the_inputs_one_further_on(numbered_run: Callable[..., Run]) -> None:
    run = numbered_run(grad_accum=2)
    batch = Windows(run).batch(1, share_of(run, rank=0, ranks=1))
    assert [inputs.shape for inputs, _ in batch.micros] == [(8, CONTEXT)] * 2
    for inputs, targets in batch.micros:
        assert np.array_equal(targets, inputs + 1)


def test_training_never_reads_a_held_out_token(numbered_run: Callable[..., Run]) -> None:
    run = numbered_run(steps=6)
    windows = Windows(run)
    read = {
        int(token)
        for step in range(6)
        for _, part in windows.batch(step, share_of(run, rank=0, ranks=1)).micros
        for token in part.flat
    }
    inputs, targets = windows.evaluation(0, windows.evaluation_windows)
    assert max(read) < run.data.training_tokens == inputs.min()
    assert windows.evaluation_windows == 10
    assert targets.max() == run.data.tokens - 1


def test_a_file_of_another_size_is_refused(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run()
    data = replace(run.data, path=str(tmp_path / "short.bin"))
    Path(data.path).write_bytes(b"short")
    with pytest.raises(InputError, match="5 bytes, planned were"):
        Windows(replace(run, data=data))


def test_a_file_of_other_content_is_refused(numbered_run: Callable[..., Run]) -> None:
    run = numbered_run()
    verify_content(run)
    with open(run.data.path, "r+b") as file:
        file.write(b"\xff")
    with pytest.raises(InputError, match="changed after the campaign was planned"):
        verify_content(run)


def test_an_absent_file_is_named(make_run: Callable[..., Run]) -> None:
    run = make_run()
    with pytest.raises(InputError, match=r"gone\.bin: cannot be read"):
        Windows(replace(run, data=replace(run.data, path="gone.bin")))


def test_an_id_outside_the_vocabulary_is_named(
    make_run: Callable[..., Run], numbered: TokenData
) -> None:
    run = make_run(data=numbered)
    with pytest.raises(InputError, match=r"token \d+: its id \d+ is outside the vocabulary of 256"):
        Windows(run).batch(0, share_of(run, rank=0, ranks=1))


def test_a_layout_that_does_not_give_the_batch_is_refused(make_run: Callable[..., Run]) -> None:
    with pytest.raises(InputError, match=r"3 ranks x micro_batch 8 .* are 768 tokens"):
        share_of(make_run(ranks=2), rank=0, ranks=3)


def test_data_that_hold_no_window_are_refused(
    make_run: Callable[..., Run], token_data: TokenData
) -> None:
    data = token_file(token_data.path, evaluation_tokens=CONTEXT)
    with pytest.raises(InputError, match="evaluation part of 32 tokens holds no window of 32"):
        Windows(make_run(data=data))


class TestTokenFile:
    def test_text_is_a_token_file_of_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "text"
        assert write_tokens(path, [b"hello ", b"world"]) == 11
        data = token_file(path, evaluation_tokens=5)
        assert (data.tokens, data.training_tokens, data.dtype) == (11, 6, "uint8")

    def test_ids_are_little_endian_whatever_they_came_as(self, tmp_path: Path) -> None:
        path = tmp_path / "ids"
        write_tokens(path, np.array([1, 515], dtype=">i8"), dtype="uint16")
        assert path.read_bytes() == b"\x01\x00\x03\x02"

    def test_an_id_too_large_leaves_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="does not fit in uint8"):
            write_tokens(tmp_path / "ids", np.array([1, 256]))
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("dtype", "evaluation", "said"),
        [
            ("uint16", 1, "no whole number of uint16"),
            ("int8", 1, "none of uint8, uint16, uint32"),
            ("uint8", 0, "cannot be held out"),
            ("uint8", 7, "cannot be held out"),
        ],
    )
    def test_what_cannot_be_is_said(
        self, tmp_path: Path, dtype: str, evaluation: int, said: str
    ) -> None:
        (tmp_path / "seven").write_bytes(b"1234567")
        with pytest.raises(InputError, match=said):
            token_file(tmp_path / "seven", dtype=dtype, evaluation_tokens=evaluation)

    def test_absent_files_and_folders_are_input_errors(self, tmp_path: Path) -> None:
        for path in (tmp_path / "absent", tmp_path):
            with pytest.raises(InputError):
                token_file(path, evaluation_tokens=1)

    def test_the_fingerprint_sees_size_start_and_end(self, tmp_path: Path) -> None:
        path = tmp_path / "big"
        # Sparse: larger than 64 blocks, so that only some of it is read.
        with open(path, "wb") as file:
            file.truncate(200 << 20)
        seen = {fingerprint(path)}
        for offset in (0, (200 << 20) - 1):
            with open(path, "r+b") as file:
                file.seek(offset)
                file.write(b"x")
            seen.add(fingerprint(path))
        with open(path, "ab") as file:
            file.write(b"x")
        seen.add(fingerprint(path))
        assert len(seen) == 4


class TestMixtures:
    @pytest.fixture
    def mixed(self, numbered_run: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
        """Three to one of the numbered file and of a smaller one whose ids begin at 10,000."""

        def make(**options: Any) -> Run:
            run = numbered_run(**options)
            path = tmp_path / "other.bin"
            write_tokens(path, 10_000 + np.arange(20 * CONTEXT), dtype="uint32")
            other = token_file(path, dtype="uint32", evaluation_tokens=4 * CONTEXT)
            return replace(run, data=mixture_of([(run.data, 3), (other, 1)]))

        return make

    @pytest.mark.parametrize("ranks", [1, 2, 4])
    @pytest.mark.parametrize("grad_accum", [1, 2])
    def test_the_global_batch_does_not_depend_on_the_layout(
        self, mixed: Callable[..., Run], ranks: int, grad_accum: int
    ) -> None:
        run = mixed(ranks=ranks, grad_accum=grad_accum)
        for step in (0, 3, 9):
            assert global_batch(run, step, ranks=ranks) == global_batch(mixed(), step, ranks=1)

    def test_each_batch_has_its_share_of_each_file_and_each_file_its_own_epochs(
        self, mixed: Callable[..., Run]
    ) -> None:
        run = mixed(steps=8)
        windows = Windows(run)
        assert [file.windows for file in windows.files] == [90, 15]
        batches = [windows.batch(step, share_of(run, rank=0, ranks=1)) for step in range(8)]
        starts = np.array([batch.micros[0][0][:, 0] for batch in batches])
        assert ((starts >= 10_000).sum(axis=1) == 4).all()
        other = starts[starts >= 10_000] - 10_000
        assert sorted(other[:15].tolist()) == [i * CONTEXT for i in range(15)]
        # of the small file the 16th window is read before, of the large one the 91st
        assert [batch.tokens_unique // CONTEXT for batch in batches] == [
            16, 16, 16, 15, 12, 12, 12, 6,
        ]  # fmt: skip

    def test_a_step_is_read_without_those_before_it(self, mixed: Callable[..., Run]) -> None:
        run = mixed(steps=30)
        share = share_of(run, rank=0, ranks=1)
        whole = Windows(run)
        for step in (0, 1, 7, 29):
            there, again = whole.batch(step, share), Windows(run).batch(step, share)
            assert np.array_equal(there.micros[0][0], again.micros[0][0])
            assert there.tokens_unique == again.tokens_unique

    def test_another_seed_is_another_order_of_the_same_turns(
        self, mixed: Callable[..., Run]
    ) -> None:
        starts = []
        for seed in (0, 1):
            run = mixed(seed=seed)
            batch = Windows(run).batch(0, share_of(run, rank=0, ranks=1))
            starts.append(batch.micros[0][0][:, 0])
        assert np.array_equal(starts[0] >= 10_000, starts[1] >= 10_000)
        assert not np.array_equal(*starts)

    def test_all_that_is_held_out_of_each_file_is_evaluated(
        self, mixed: Callable[..., Run]
    ) -> None:
        windows = Windows(mixed())
        assert windows.evaluation_windows == 10 + 3
        inputs, targets = windows.evaluation(8, 4)
        assert np.array_equal(targets, inputs + 1)
        first = 90 * CONTEXT + 1
        assert inputs[:, 0].tolist() == [
            first + 8 * CONTEXT, first + 9 * CONTEXT, 10_000 + 16 * CONTEXT, 10_000 + 17 * CONTEXT,
        ]  # fmt: skip

    def test_every_file_that_is_not_right_is_named(self, mixed: Callable[..., Run]) -> None:
        run = mixed()
        for part in run.data.parts:
            with open(part.data.path, "r+b") as file:
                file.write(b"\xff")
        with pytest.raises(InputError, match="changed after the campaign was planned"):
            verify_content(run)
        for part in run.data.parts:
            Path(part.data.path).write_bytes(b"")
        with pytest.raises(InputError) as error:
            Windows(run)
        assert len(error.value.faults) == 2


class TestDocuments:
    @pytest.fixture
    def packed(self, numbered_run: Callable[..., Run]) -> Run:
        """The numbered file in documents of 20 tokens, of which none crosses a window of 32."""
        run = numbered_run()
        edges = np.append(np.arange(0, run.data.tokens, 20), run.data.tokens)
        edges.astype("<i8").tofile(index_of(run.data.path))
        return replace(run, data=replace(run.data, packing="documents"))

    def test_an_epoch_reads_every_token_once_and_targets_follow_in_the_file(
        self, packed: Run
    ) -> None:
        windows = Windows(packed)
        assert windows.windows == 90
        batches = [windows.batch(s, share_of(packed, rank=0, ranks=1)) for s in range(6)]
        inputs = np.concatenate([batch.micros[0][0] for batch in batches])[:90]
        targets = np.concatenate([batch.micros[0][1] for batch in batches])[:90]
        assert np.array_equal(np.sort(inputs.ravel()), np.arange(90 * CONTEXT))
        assert np.array_equal(targets, inputs + 1)
        # Stays whole: a document of 20 in each window, beside 12 tokens of one that was divided.
        whole = [{w // 20 for w in row if w % 20 == 0 and w + 19 in row} for row in inputs]
        assert sum(map(len, whole)) >= 90

    def test_what_is_held_out_is_the_same_as_in_a_stream(self, packed: Run) -> None:
        stream = replace(packed, data=replace(packed.data, packing="stream"))
        for one, other in zip(
            Windows(packed).evaluation(0, 10), Windows(stream).evaluation(0, 10), strict=True
        ):
            assert np.array_equal(one, other)

    def test_without_an_index_it_cannot_be(self, packed: Run) -> None:
        index_of(packed.data.path).unlink()
        with pytest.raises(InputError, match=r"`packing: stream` needs none"):
            Windows(packed)
