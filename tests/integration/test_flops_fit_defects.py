"""What an earlier library for scaling laws promised and did not do, each as a behaviour of llem."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("torch") is None or find_spec("accelerate") is None:
    pytest.skip("torch and accelerate are not installed", allow_module_level=True)

import itertools

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import llem
from llem.errors import InputError, LlemError

pytestmark = pytest.mark.train

INPUTS, CLASSES = 16, 10
SIZES = [8, 12, 16, 24, 32]
BUDGET = "8e8 FLOP"


class MLP(nn.Module):
    """Counts the samples that it is trained on and those that it is evaluated on."""

    trained = evaluated = 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(INPUTS, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
            nn.Linear(width, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "meta":
            MLP.trained += len(x) * self.training
            MLP.evaluated += len(x) * (not self.training)
        return self.net(x)


def samples(count: int = 40_000, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points labelled by a random network of the same kind, wider than all that are trained."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, INPUTS, generator=draw)
    hidden = torch.tanh(x @ torch.randn(INPUTS, 96, generator=draw))
    return x, (hidden @ torch.randn(96, CLASSES, generator=draw)).argmax(1)


def ask(out: Path, **changed: Any) -> Any:
    words: dict[str, Any] = {
        "model": MLP, "size": "width", "sizes": SIZES, "dataset": samples(),
        "loss_fn": F.cross_entropy, "budget": BUDGET, "batch": 64, "ratio": 2.0,
        "evaluation": 0.05, "out": out, "progress": False,
    }  # fmt: skip
    return llem.find_optimal(**{**words, **changed})


def attempts(out: Path) -> int:
    return len(list(out.glob("runs/*/attempt-*")))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> tuple[llem.Result, dict[str, int]]:
    """One search to a law, and how many samples its models saw meanwhile."""
    MLP.trained = MLP.evaluated = 0
    result = ask(tmp_path_factory.mktemp("asked") / "c")
    return result, {"trained": MLP.trained, "evaluated": MLP.evaluated}


def test_installed_commands_start(tmp_path):
    """Its four commands failed wherever they were installed: configuration was not packaged."""
    scripts = [e for e in metadata.entry_points(group="console_scripts") if e.module == "llem.cli"]
    for script in scripts:
        assert callable(script.load())
    done = subprocess.run(
        [sys.executable, "-m", "llem", "--help"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_dry_run_trains_nothing_and_writes_nothing(tmp_path):
    """Its `mock` mode trained real models."""
    MLP.trained = MLP.evaluated = 0
    preview = ask(tmp_path / "c", plan_only=True)
    assert (MLP.trained, MLP.evaluated) == (0, 0)
    assert not (tmp_path / "c").exists()
    assert len(preview.table()) == len(preview.plan.runs)
    assert "nothing was trained" in str(preview)


def test_no_keyword_is_swallowed(tmp_path):
    """It took any keyword and ignored it."""
    with pytest.raises(TypeError, match="budget says how much") as error:
        ask(tmp_path / "c", epochs=3, leaning_rate=0.1)
    assert isinstance(error.value, InputError)
    assert "did you mean 'learning_rate'?" in str(error.value)


def test_every_fault_of_a_call_is_told_at_once(tmp_path):
    with pytest.raises(InputError) as error:
        ask(
            tmp_path / "c", size="widht", model_kwargs={"depth": 2}, loss_fn=nn.CrossEntropyLoss,
            dataset=(torch.zeros(3), torch.zeros(4)),
        )  # fmt: skip
    told = str(error.value)
    for words in ("did you mean 'width'?", "no 'depth'", "give an instance", "dataset"):
        assert words in told


def test_the_size_may_not_be_fixed_as_well(tmp_path):
    with pytest.raises(InputError, match="cannot be fixed as well"):
        ask(tmp_path / "c", model_kwargs={"width": 4})


def test_a_size_of_ten_billion_parameters_is_looked_at_without_memory():
    """It built every size for real, up to a width of 8192, to count it."""
    from llem.training.samples.losses import loss_of
    from llem.training.samples.probe import probe
    from llem.training.samples.samples import Objects
    from llem.training.samples.sampleset import open_samples

    train = open_samples(samples(64))
    objects = Objects(MLP, loss_of(F.cross_entropy), train)
    batch = train.fetch([0, 1])
    found = probe(objects, size="width", value=100_000, arguments={}, batch=batch, samples=2,
                  units=1)  # fmt: skip
    assert found.params > 1e10
    assert not found.note
    # Matrix products alone, forward and twice that backward, less the gradient of the input.
    weights = 100_000 * (INPUTS + 100_000 + CLASSES)
    assert found.flops == 6 * weights - 2 * INPUTS * 100_000


@pytest.mark.slow
def test_budgets_are_honoured_in_samples_that_were_really_read(asked):
    """It trained one epoch whatever the budget was, and reported the budget."""
    result, seen = asked
    plan = json.loads((result.folder / "plan.json").read_text())
    rows = {row["run_id"]: row for row in result.observations}
    assert len(rows) == len(plan["runs"])
    for run in plan["runs"]:
        row = rows[run["run_id"]]
        with h5py.File(result.folder / "runs" / run["run_id"] / "attempt-0/rank-00000.h5") as file:
            assert int(file["steps"]["tokens_rank"][:].sum()) == run["tokens"] == row["tokens"]
        assert row["flops"] == pytest.approx(run["flops"])
    assert seen["trained"] == sum(run["tokens"] for run in plan["runs"])
    spent = sum(row["flops"] for row in rows.values())
    assert 0.98 * 8e8 <= spent <= 8e8


@pytest.mark.slow
def test_data_read_again_count_as_read(asked, tmp_path):
    """D is what was consumed, of later epochs too; how much of it was new is told beside."""
    result = ask(tmp_path / "c", dataset=samples(1500))
    for row in result.observations:
        path = result.folder / "runs" / row["run_id"] / "attempt-0/rank-00000.h5"
        with h5py.File(path) as file:
            read, new = (file["steps"][n][:].sum() for n in ("tokens_rank", "tokens_unique"))
        assert row["tokens"] == read
        assert new == min(read, 1500 - 75 // 1)
    assert not result.problems


@pytest.mark.slow
def test_the_loss_is_that_of_held_out_data_after_the_last_step(asked):
    """It reported the mean over the training epoch."""
    result, seen = asked
    held_out = 2000
    clusters = held_out // 31
    assert seen["evaluated"] == len(result.observations) * clusters * 31
    for row in result.observations:
        path = result.folder / "runs" / row["run_id"] / "attempt-0/rank-00000.h5"
        with h5py.File(path) as file:
            steps, evals = file["steps"][:], file["evals"][:]
        assert len(evals) == 1 and evals["step"][0] == len(steps)
        assert row["loss"] == evals["loss"][0] != steps["loss"].mean()
        assert row["loss_se"] > 0


@pytest.mark.slow
def test_the_same_call_trains_nothing_again(asked):
    result, _ = asked
    before = attempts(result.folder)
    MLP.trained = 0
    again = ask(result.folder)
    assert MLP.trained == 0
    assert attempts(result.folder) == before
    assert again.law.params == result.law.params


@pytest.mark.slow
def test_new_budgets_in_the_same_folder_are_trained(asked, tmp_path):
    """It looked runs up by their index, and gave back the old ones' results."""
    import shutil

    result, _ = asked
    folder = Path(shutil.copytree(result.folder, tmp_path / "c"))
    old = {run["run_id"] for run in result.observations}
    MLP.trained = 0
    more = ask(folder, budget="1.2e9 FLOP")
    new = [row for row in more.observations if row["run_id"] not in old]
    assert new
    assert MLP.trained == sum(row["tokens"] for row in new)
    assert sum(row["flops"] for row in more.observations) > 0.98 * 1.2e9


def test_a_run_is_another_one_where_code_data_or_recipe_differ(tmp_path):
    class Tanh(MLP):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(torch.tanh(x))

    def smooth(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, label_smoothing=0.1)

    x, y = samples()
    other = x.clone()
    other[17, 3] += 1

    def ids(**changed: Any) -> set[str]:
        return set(ask(tmp_path / "c", plan_only=True, **changed).plan.runs.run_ids)

    same = ids()
    assert ids() == same
    # The same data in another wrapping are the same data.
    assert ids(dataset=torch.utils.data.TensorDataset(x, y)) == same
    for changed in (
        {"model": Tanh}, {"loss_fn": smooth}, {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"dataset": (torch.cat([x[:1] + 1, x[1:]]), y)}, {"learning_rate": 1e-3},
        {"evaluation": 0.06}, {"weight_decay": 0.0},
    ):  # fmt: skip
        assert not ids(**changed) & same, changed


class Flaky(MLP):
    """Fails once where a file says so, always where a width does."""

    flag: Path
    never = 0

    def __init__(self, width: int) -> None:
        super().__init__(width)
        if torch.get_default_device().type == "meta":
            return
        if width == Flaky.never or (width == 16 and not Flaky.flag.exists()):
            Flaky.flag.touch()
            raise RuntimeError("the node has had enough")


@pytest.mark.slow
def test_a_failed_run_is_tried_once_more_and_stands_once_in_the_table(tmp_path):
    """It kept the rows of failures, and added another one at each retry."""
    Flaky.flag, Flaky.never = tmp_path / "failed", 24
    result = ask(tmp_path / "c", model=Flaky, budget="4e8 FLOP")
    rows = {row["run_id"]: row for row in result.observations}
    assert len(rows) == len(result.observations)
    by_status = {status: [r for r in rows.values() if r["status"] == status]
                 for status in ("completed", "failed")}  # fmt: skip
    # Two attempts at each run of the width that never works, one more at the run that failed once.
    assert by_status["failed"] and {r["attempts"] for r in by_status["failed"]} == {2}
    assert sorted(r["attempts"] for r in by_status["completed"])[-2:] == [1, 2]
    assert all("had enough" in row["reason"] for row in by_status["failed"])
    left_out = {item["run_id"] for item in result.fit_json["excluded"]}
    assert left_out == {row["run_id"] for row in by_status["failed"]}


@pytest.mark.slow
def test_size_and_data_of_an_optimum_cost_its_budget(asked):
    """It fitted N and D apart, so that 6 N D was up to 67 times off the budget."""
    result, _ = asked
    model = result.fit.flops_model
    for budget in (1e8, 1e9, 1e12, "3 TFLOP"):
        best = result.optimum(budget)
        assert model.coefficient * best.params**model.exponent * best.tokens == pytest.approx(
            best.flops, rel=1e-6
        )
        assert best.flops == pytest.approx(best.budget.value)


@pytest.mark.slow
def test_every_answer_has_an_interval_and_says_where_it_leaves_the_data(asked):
    """Its fields for intervals were never filled, and it extrapolated in silence."""
    result, _ = asked
    for low, high in result.law.ci.values():
        assert low <= high
    largest = max(row["flops"] for row in result.observations)
    inside, outside = result.optimum(0.9 * largest), result.optimum(100 * largest)
    assert not inside.beyond_data and outside.beyond_data
    assert "extrapolated" in str(outside) and "extrapolated" not in str(inside)
    for answer in (inside, outside):
        for name in ("params", "tokens", "loss"):
            low, high = answer.ci[name]
            assert low < getattr(answer, name) < high
    loss = result.predict(inside.params, inside.tokens)
    assert loss.low < loss.value < loss.high and not loss.beyond_data
    assert loss.value == pytest.approx(inside.loss, rel=1e-3)
    assert result.predict(1e9, 1e12).beyond_data


@pytest.mark.slow
def test_the_optimum_is_no_size_of_the_grid_and_may_lie_beyond_it(asked):
    """Its optimum was always one of the sizes trained: exponents of .5 with R2 = 1."""
    result, _ = asked
    trained = {params for _, params in result.sizes}
    found = [result.optimum(budget) for budget in np.geomspace(1e8, 1e12, 9)]
    assert all(round(best.params) not in trained for best in found)
    assert all(a.params < b.params for a, b in itertools.pairwise(found))
    far = result.optimum(1e12)
    assert far.value > max(SIZES)
    built = sum(p.numel() for p in MLP(far.value).parameters())
    assert built == pytest.approx(far.params, rel=0.05)


@pytest.mark.slow
def test_the_result_can_be_read_kept_and_shown(asked, tmp_path):
    result, _ = asked
    table = result.table()
    assert str(table).startswith("| budget | width | params |")
    assert float(table[-1]["params"]) == result.optimum().params
    kept = json.loads(result.to_json(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text()) == kept
    assert kept["unit"] == "sample" and len(kept["runs"]) == len(result.observations)
    assert "<table>" in result._repr_html_()
    fit = json.loads((result.folder / "results" / "fit.json").read_text())
    assert result.fit.params == pytest.approx(fit["params"])
    read = llem.Result.read(result.folder)
    assert read.law == result.law
    assert read.optimum().params == result.optimum().params
    if find_spec("matplotlib") is not None:
        result.plot(tmp_path / "r.png")
        assert (tmp_path / "r.png").stat().st_size > 10_000


def test_a_budget_for_too_few_runs_is_refused_before_any_is_trained(tmp_path):
    MLP.trained = 0
    with pytest.raises(InputError, match="budget") as error:
        ask(tmp_path / "c", budget="3e7 FLOP")
    assert "raise it" in str(error.value)
    assert MLP.trained == 0


@pytest.mark.slow
def test_runs_that_all_fail_end_in_an_error_that_says_what_to_do(tmp_path):
    class Broken(MLP):
        def forward(self, x: Tensor) -> Tensor:
            if x.device.type != "meta":
                raise RuntimeError("no")
            return super().forward(x)

    with pytest.raises(LlemError, match="carry no law") as error:
        ask(tmp_path / "c", model=Broken, budget="2e8 FLOP", sizes=[8, 12, 16])
    assert "llem status" in str(error.value.remedy)


@pytest.mark.slow
def test_two_launched_ranks_give_the_runs_and_the_answer_of_one(tmp_path):
    """`accelerate launch`: every rank calls, every rank gets the same Result."""
    small = {"budget": "6e7 FLOP", "levels": 2, "sizes": SIZES[:3], "batch": 32}
    result = ask(tmp_path / "one", **small)
    script = tmp_path / "two.py"
    source = Path(__file__)
    script.write_text(
        f"import sys; sys.path.insert(0, {str(source.parent)!r})\n"
        f"from {source.stem} import ask\n"
        "import os\nfrom pathlib import Path\n"
        f"result = ask(Path(sys.argv[1]), **{small!r})\n"
        "told = (os.environ['RANK'], result.law.params['alpha'], result.optimum(1e10).params)\n"
        # in one write: the ranks share a pipe
        "sys.stdout.write(' '.join(map(str, told)) + '\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         script, tmp_path / "c"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line.split()[1:] for line in done.stdout.splitlines() if line[:2] in ("0 ", "1 ")]
    assert len(told) == 2 and told[0] == told[1]
    two = {row["run_id"]: row for row in llem.Result.read(tmp_path / "c").observations}
    one = {row["run_id"]: row for row in result.observations}
    assert set(two) == set(one)
    for name, row in two.items():
        assert row["ranks"] == 2 and row["tokens"] == one[name]["tokens"]
        assert math.isclose(row["loss"], one[name]["loss"], rel_tol=2e-3)
