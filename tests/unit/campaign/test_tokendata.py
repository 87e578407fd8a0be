"""The data of a run: files, mixtures, and how often they are read."""

from dataclasses import replace
from fractions import Fraction

import pytest

from llem.campaign import Run, TokenData, mixture_of
from llem.campaign.data.tokendata import whole_weights
from llem.campaign.data.tokenfile import token_file
from llem.errors import InputError

from .example import RUN

A = TokenData(path="a.bin", dtype="uint8", tokens=1100, evaluation_tokens=100, fingerprint="a")
B = replace(A, path="b.bin", dtype="uint16", fingerprint="b")


def test_runs_without_a_new_choice_keep_the_name_that_they_had():
    # hashed before mixtures and packing were known
    assert RUN.run_id == "9dcabc1f9e19"
    assert set(RUN.to_dict()["data"]) == {
        "path", "dtype", "tokens", "evaluation_tokens", "fingerprint",
    }  # fmt: skip


def test_packing_is_another_run():
    packed = replace(RUN, data=replace(RUN.data, packing="documents"))
    assert packed.run_id != RUN.run_id
    assert Run.from_dict(packed.to_dict()) == packed


@pytest.mark.parametrize(
    "other",
    [
        mixture_of([(A, 1), (B, 3)]),
        mixture_of([(B, 3), (A, 1)]),
        mixture_of([(A, 3), (replace(B, fingerprint="c"), 1)]),
        mixture_of([(A, 3), (replace(B, evaluation_tokens=50), 1)]),
        A,
    ],
)
def test_weights_files_and_their_order_change_the_name_of_a_mixture(other):
    mixed = replace(RUN, data=mixture_of([(A, 3), (B, 1)]))
    assert replace(RUN, data=other).run_id != mixed.run_id


def test_paths_and_the_unit_of_weights_do_not():
    moved = mixture_of([(replace(A, path="/x/a.bin"), 0.75), (B, Fraction(1, 4))])
    assert replace(RUN, data=moved).run_id == replace(RUN, data=mixture_of([(A, 3), (B, 1)])).run_id


def test_a_mixture_reads_back_from_what_it_is_written_as():
    run = replace(RUN, data=mixture_of([(A, 3), (B, 1)]))
    assert Run.from_dict(run.to_dict()) == run
    assert hash(run.data) == hash(Run.from_dict(run.to_dict()).data)


@pytest.mark.parametrize(
    ("weights", "whole"),
    [([3, 1], [3, 1]), ([0.7, 0.3], [7, 3]), ([0.1, 0.2, 0.3], [1, 2, 3]), ([50.0, 25.0], [2, 1])],
)
def test_weights_are_the_decimals_that_they_are_written_as(weights, whole):
    assert whole_weights(weights) == whole


@pytest.mark.parametrize("weights", [[0.0, 1.0], [-1, 2], [0.123457, 0.876542]])
def test_weights_that_cannot_be_kept_exactly_are_refused(weights):
    with pytest.raises(ValueError, match="weight"):
        whole_weights(weights)


def test_epochs_are_counted_from_the_first_token_that_is_read_again():
    assert (A.once_tokens, A.epochs(1000), A.epochs(2500)) == (1000, 1.0, 2.5)
    mixed = mixture_of([(A, 3), (replace(B, tokens=5100, evaluation_tokens=100), 1)])
    # a fourth of the tokens are of b: its 5,000 are used up after 20,000
    assert mixed.once_tokens == 4000 // 3
    assert mixed.different_tokens(4000) == 1000 + 1000
    assert mixed.epochs(4000) == 2.0


def test_a_calibration_holds_out_little_of_each_file():
    mixed = mixture_of([(A, 3), (B, 1)])
    small = mixed.holding_out_at_most(10)
    assert [part.data.evaluation_tokens for part in small.parts] == [10, 10]
    assert small.evaluation_tokens == 20
    assert A.holding_out_at_most(1000) == A


def test_an_absent_file_is_told_with_what_makes_one(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read.*`llem data prepare TEXT --out FILE`"):
        token_file(tmp_path / "none.bin", dtype="uint16", evaluation_tokens=1)
