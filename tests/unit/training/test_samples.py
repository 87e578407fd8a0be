"""The task of any model on any data set: order, held-out samples, counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llem.campaign import CustomModel, Layout, Predicted, Recipe, Run, SampleData
from llem.errors import InputError
from llem.training import World
from llem.training.samples.losses import loss_of
from llem.training.samples.samples import Objects, SampleTask, check_model
from llem.training.samples.sampleset import open_samples
from llem.training.tokens.data import Share

SAMPLES = 200
X = torch.randn(SAMPLES, 3)
Y = torch.arange(SAMPLES) % 2
WORLD = World(
    rank=0, local_rank=0, world_size=1, zero_stage=0, precision="fp32",
    device=torch.device("cpu"), grouped=False,
)  # fmt: skip


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def task_of(*, held_out: Any = None, seed: int = 0, **changed: Any) -> SampleTask:
    other = open_samples(held_out) if held_out is not None else None
    objects = Objects(Net, loss_of(F.cross_entropy), open_samples((X, Y)), other)
    evaluated = other.size if other else 40
    data = SampleData(
        dataset="in-session:tensors", fingerprint=objects.fingerprint,
        samples=SAMPLES - (0 if other else evaluated), evaluation_samples=evaluated,
        split="own" if other else "random",
    )  # fmt: skip
    params = sum(p.numel() for p in Net(4).parameters())
    run = Run(
        model=CustomModel(class_path="in-session:Net", size="width", value=4, params=params,
                          vocabulary=1, context=1),
        tokens=160, steps=20, seed=seed, data=replace(data, **changed),
        recipe=Recipe(batch_tokens=8, learning_rate=1e-2, warmup_steps=1), layout=Layout(),
        predicted=Predicted(duration_s=1.0, gpu_hours=1.0, energy_j=1.0, memory_bytes=1.0),
    )  # fmt: skip
    task = SampleTask(run, WORLD, objects=objects)
    task.open()
    return task


def rows(batch: Any) -> list[tuple[float, ...]]:
    return [tuple(row) for x, _ in batch.micros for row in x.tolist()]


@pytest.mark.parametrize(("ranks", "accum"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_the_samples_of_a_step_are_the_same_however_they_are_divided(ranks, accum):
    task = task_of()
    whole = Share(rank=0, ranks=1, micro_batch=8, grad_accum=1)
    for step in (0, 7, 19, 20):
        divided: list[tuple[float, ...]] = []
        for rank in range(ranks):
            share = Share(rank=rank, ranks=ranks, micro_batch=8 // (ranks * accum),
                          grad_accum=accum)  # fmt: skip
            divided += rows(task_of().batch(step, share))
        assert sorted(divided) == sorted(rows(task.batch(step, whole)))


def test_an_epoch_is_every_training_sample_once_and_no_held_out_one():
    task = task_of()
    share = Share(rank=0, ranks=1, micro_batch=8, grad_accum=1)
    batches = [task.batch(step, share) for step in range(20)]
    seen = [row for batch in batches for row in rows(batch)]
    assert len(set(seen)) == len(seen) == 160
    assert sum(batch.tokens_unique for batch in batches) == 160
    again = task.batch(20, share)
    assert (again.tokens, again.tokens_unique) == (8, 0)
    held: list[int] = []
    fetch = task.objects.train.fetch
    spy = replace(task.objects.train, fetch=lambda i: held.extend(int(k) for k in i) or fetch(i))
    task._given = replace(task.objects, train=spy)
    del task.__dict__["objects"]
    model = task.build().eval()
    task.held_out_losses(model, 0, task.held_out.clusters)
    assert len(set(held)) == 40
    assert not {tuple(X[i].tolist()) for i in held} & set(seen)


def test_a_held_out_loss_is_the_mean_over_the_evaluation_set():
    other = (torch.randn(64, 3), torch.randint(0, 2, (64,)))
    task = task_of(held_out=other)
    model = task.build().eval()
    losses = task.held_out_losses(model, 0, task.held_out.clusters)
    assert losses.dtype == torch.float64 and len(losses) == task.held_out.clusters
    assert losses.mean().item() == pytest.approx(F.cross_entropy(model(other[0]), other[1]).item())


def test_the_first_backward_leaves_running_means_as_they_were():
    task = task_of()
    model = task.build()
    before = {name: b.clone() for name, b in model.named_buffers()}
    task.warm_up(model).backward()
    assert all(p.grad is not None for p in model.parameters())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


def test_other_data_than_planned_are_refused():
    with pytest.raises(InputError, match="changed after the campaign was planned"):
        task_of(fingerprint="0" * 32).verify()


def test_names_of_data_and_module_are_no_part_of_a_runs_name_but_content_is():
    run = task_of().run
    moved = replace(
        run, data=replace(run.data, dataset="data/samples"),
        model=replace(run.model, class_path="package.module:Net", flops_each=1e6),
    )  # fmt: skip
    assert moved.run_id == run.run_id
    assert Run.from_dict(moved.to_dict()) == moved
    for changed in (
        replace(run, data=replace(run.data, fingerprint="1" * 32)),
        replace(run, model=replace(run.model, source="another")),
        replace(run, model=replace(run.model, arguments={"depth": 2})),
    ):
        assert changed.run_id != run.run_id


def test_a_model_is_checked_by_its_signature():
    def told(*args: Any) -> str:
        return " ".join(map(str, check_model(*args)))

    assert check_model(Net, "width", {}) == []
    assert check_model(lambda **words: None, "anything", {}) == []
    assert "did you mean 'width'?" in told(Net, "with", {})
    assert "give its class: Net" in told(Net(2), "width", {})
    assert "cannot be fixed as well" in told(Net, "width", {"width": 3})
