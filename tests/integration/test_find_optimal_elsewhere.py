"""`find_optimal` for ranks that share nothing with the process that asks but a folder."""

from __future__ import annotations

import json
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

if find_spec("torch") is None or find_spec("accelerate") is None:
    pytest.skip("torch and accelerate are not installed", allow_module_level=True)

import torch.nn.functional as F
from torch import nn

import llem
from llem.cluster import CampaignFolder, run_locally
from llem.errors import InputError
from llem.pipeline.optimal import find as optimal

pytestmark = pytest.mark.train

MODULE = Path(__file__).with_name("foreign.py")
SITE = {
    "name": "there",
    "gpu": {"name": "cpu"},
    "gpu_request": "none",
    "startup_s": 1,
    "pack_s": 60,
    # No step of the scheduler's is there to sample in: ranks start what measures.
    "overlap": False,
}


class Submitted(Exception):
    """Where jobs would be submitted."""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the user's module, and a scheduler that takes nothing."""
    shutil.copy(MODULE, tmp_path / "foreign.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "foreign", raising=False)

    def submit(*_args: Any, **_words: Any) -> None:
        raise Submitted

    monkeypatch.setattr(optimal, "run_campaign", submit)
    yield tmp_path
    sys.modules.pop("foreign", None)


def ask(out: Path, **changed: Any) -> Any:
    words: dict[str, Any] = {
        "model": "foreign:MLP", "size": "width", "sizes": [4, 8, 16, 32],
        "dataset": "foreign:points", "loss_fn": "foreign:loss", "budget": "6e7 FLOP", "batch": 32,
        "ratio": 2.0, "out": out, "progress": False,
    }  # fmt: skip
    return llem.find_optimal(**{**words, **changed})


def plan_elsewhere(project: Path, **changed: Any) -> CampaignFolder:
    with pytest.raises(Submitted):
        ask(project / "c", executor="slurm", site=SITE, code=project, **changed)
    return CampaignFolder(project / "c")


def test_what_lives_in_the_session_is_refused_with_how_to_name_it(project):
    class Mine(nn.Linear):
        pass

    with pytest.raises(InputError) as error:
        ask(project / "c", executor="slurm", model=Mine, loss_fn=nn.CrossEntropyLoss())
    told = str(error.value)
    assert "SLURM needs one" in told
    with pytest.raises(InputError) as error:
        ask(project / "c", executor="slurm", site=SITE, model=Mine, size="out_features",
            model_kwargs={"in_features": 8}, loss_fn=nn.CrossEntropyLoss())  # fmt: skip
    told = str(error.value)
    assert "module:Class" in told and "torch.nn.functional:cross_entropy" in told


def test_code_and_data_go_with_the_campaign_and_no_pickle_does(project):
    import foreign

    folder = plan_elsewhere(
        project, model=foreign.MLP, dataset=foreign.points(), loss_fn=F.cross_entropy
    )
    assert (folder.root / "code/foreign.py").read_text() == MODULE.read_text()
    data = folder.load_plan().runs[0].data
    assert data.dataset == "data/samples"
    kinds = {path.suffix for path in folder.root.rglob("*") if path.is_file()}
    assert kinds <= {".py", ".json", ".jsonl", ".sbatch", ".html", ".bin", ""}
    told = json.loads((folder.root / "data/samples/samples.json").read_text())
    assert [array["dtype"] for array in told["arrays"]] == ["<f4", "<i8"]


@pytest.mark.slow
@pytest.mark.parametrize("written", [False, True], ids=["by name", "written as arrays"])
def test_other_processes_train_the_very_runs_of_this_one(project, written):
    """Ranks that import class, loss and data come to the bits of those that were handed them."""
    import foreign

    small = {"budget": "3e7 FLOP", "levels": 2, "sizes": [4, 8, 16]}
    dataset = foreign.points() if written else "foreign:points"
    folder = plan_elsewhere(project, dataset=dataset, **small)
    # In processes of their own, which know `code/` of the campaign and not the project's folder.
    outcome = run_locally(folder, folder.load_plan())
    assert not outcome.failed, "\n".join(p.read_text()[-2000:] for _, p in outcome.failed)
    here = ask(project / "here", model=foreign.MLP, loss_fn=foreign.loss, dataset=foreign.points(),
               **small)  # fmt: skip
    for row in here.observations:
        (end,) = folder.ends(row["run_id"])
        assert end["loss"] == row["loss"]


@pytest.mark.slow
def test_a_campaign_file_may_name_a_data_set_of_samples(project):
    text = """\
name: foreign
target: 1e9 FLOP
budget: 3e7 FLOP
model: {class: "foreign:MLP", size: width, values: [4, 8, 16], loss: "foreign:loss"}
data: {dataset: "foreign:points", evaluation: 0.1}
grid: {levels: 2, sizes: 3, ratio: 2}
training: {precision: fp32, rule: small, batch_tokens: 32}
site: laptop
"""
    (project / "campaign.yaml").write_text(text)
    campaign = llem.load_campaign(project / "campaign.yaml")
    planned = llem.plan_campaign(campaign, out=project / "c", base=project)
    assert not run_locally(planned.folder, planned.plan).failed
    done = llem.finish(planned.folder)
    assert done.fit is not None and done.fit["n_runs"] == len(planned.plan.runs) == 6
    assert llem.Result.read(planned.folder.root).unit == "sample"
