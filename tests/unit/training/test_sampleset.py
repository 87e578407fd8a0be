"""Data sets of every kind, as samples that are read by number."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
)

from llem.errors import InputError
from llem.training.samples.batches import tokens_each
from llem.training.samples.sampleset import digest_of, open_samples

X, Y = torch.arange(60.0).view(20, 3), torch.arange(20)


class Squares(Dataset[Any]):
    def __init__(self, size: int = 20) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": np.float32(index), "label": index**2}


class Stream(IterableDataset[Any]):
    def __init__(self, size: int = 20) -> None:
        self.size = size

    def __iter__(self) -> Any:
        return ((X[i % 20], int(Y[i % 20])) for i in range(self.size))


class Noisy(Squares):
    def __getitem__(self, index: int) -> Any:
        return torch.randn(2) + np.random.rand() + random.random(), index  # noqa: NPY002


class Unseeded(Squares):
    calls = 0

    def __getitem__(self, index: int) -> Any:
        Unseeded.calls += 1
        return torch.tensor([float(Unseeded.calls)]), index


def test_tensors_are_read_by_index():
    found = open_samples((X, Y))
    assert found.size == 20
    x, y = found.fetch([3, 0])
    assert x.tolist() == X[[3, 0]].tolist() and y.tolist() == [3, 0]


def test_the_same_samples_in_another_wrapping_have_the_same_fingerprint():
    wrapped = [
        (X, Y), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), batch_size=4),
        (X.numpy(), Y.numpy()), [(X[i], Y[i]) for i in range(20)], lambda: TensorDataset(X, Y),
    ]  # fmt: skip
    assert len({open_samples(one).fingerprint for one in wrapped}) == 1
    changed = X.clone()
    changed[19, 2] = 0
    assert open_samples((changed, Y)).fingerprint != open_samples((X, Y)).fingerprint


def test_a_loader_gives_its_batch_size_and_how_it_collates():
    def collate(items: list[Any]) -> Any:
        return torch.stack([i[0] for i in items]).sum(1), torch.stack([i[1] for i in items])

    found = open_samples(DataLoader(TensorDataset(X, Y), batch_size=7, collate_fn=collate))
    assert found.batch_size == 7
    assert found.fetch([1])[0].tolist() == [12.0]


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        ((torch.zeros(3), torch.zeros(4)), "not of one length"),
        (DataLoader(TensorDataset(X), batch_size=None), "batch_size is None"),
        (DataLoader(TensorDataset(X), sampler=WeightedRandomSampler([1.0] * 20, 20)),
         "its sampler"),
        (torch.arange(100), "context"),
        ("no.such:thing", "cannot be imported"),
        ("no/such/folder", "no folder of samples"),
        (7, "no data set"),
        ([], "empty"),
        (lambda path: None, "could not be called without arguments"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_what_to_give(dataset, words):
    with pytest.raises(InputError, match=words):
        open_samples(dataset)


def test_token_ids_are_cut_into_windows_whose_targets_are_one_further_on():
    for tokens in (np.arange(101, dtype=np.uint8), torch.arange(101)):
        found = open_samples(tokens, context=10)
        x, y = found.fetch([0, 9])
        assert found.size == 10 and found.ordered
        assert x[0].tolist() == list(range(10)) and y[1].tolist() == list(range(91, 101))
        assert tokens_each((x, y)) == (10, "")


def test_what_can_only_be_iterated_is_read_once_into_plain_arrays(tmp_path):
    found = open_samples(Stream(), spool=tmp_path / "s")
    assert found.size == 20 and "read once" in found.notes[0]
    x, y = found.fetch([5, 2])
    assert x.tolist() == X[[5, 2]].tolist() and y.tolist() == [5, 2]
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["0.bin", "1.bin", "samples.json"]
    # Where it lies it needs no code to be read again.
    assert open_samples(str(tmp_path / "s")).fingerprint == found.fingerprint
    assert found.fingerprint == open_samples((X, Y)).fingerprint


def test_an_endless_stream_is_read_as_far_as_was_said(tmp_path):
    found = open_samples(Stream(10**9), spool=tmp_path / "s", max_samples=50)
    assert found.size == 50 and "stopped at max_samples=50" in found.notes[0]


def test_samples_of_several_shapes_cannot_be_written_as_arrays(tmp_path):
    ragged = (torch.zeros(1 + i % 2) for i in range(4))
    with pytest.raises(InputError, match="of one shape"):
        open_samples(ragged, spool=tmp_path / "s")


def test_data_that_draw_random_numbers_are_the_same_by_the_same_seed():
    found = open_samples(Noisy())
    assert found.draws and not open_samples(Squares()).draws
    before = torch.get_rng_state()
    assert found.fingerprint == open_samples(Noisy()).fingerprint
    assert torch.equal(before, torch.get_rng_state())
    one = found.seeded([4, 5], [1, 2])
    assert digest_of([one]) == digest_of([found.seeded([4, 5], [1, 2])])
    # Whatever was read beside it.
    assert torch.equal(one[0][1], found.seeded([5], [2])[0][0])


def test_data_that_no_seed_repeats_are_refused():
    with pytest.raises(InputError, match="not the same when it is read twice"):
        _ = open_samples(Unseeded()).fingerprint


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        ((torch.zeros(2, 5).long(), torch.zeros(2, 5).long()), 5),
        ({"input_ids": torch.zeros(2, 7).long(), "labels": torch.zeros(2, 7).long()}, 7),
        ((torch.zeros(2, 5), torch.zeros(2, 5)), 0),
        ((torch.zeros(2, 5).long(), torch.zeros(2).long()), 0),
        ({"input_ids": torch.ones(1, 3).long(), "attention_mask": torch.tensor([[1, 1, 0]])}, 0),
    ],
)
def test_d_counts_tokens_where_samples_are_made_of_them(batch, tokens):
    assert tokens_each(batch)[0] == tokens


def test_a_tensor_of_a_batch_stays_a_tensor(tmp_path):
    x = open_samples(Squares()).fetch([2, 3])
    assert isinstance(x["x"], Tensor) and x["label"].tolist() == [4, 9]
