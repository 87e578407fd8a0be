"""`find_optimal` as people start it: a script under `accelerate launch`, cells of a notebook."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import llem
from llem.records import read_rank

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed"),
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]

# A class that no other process could import: it lives in `__main__`.
MODEL = """\
import torch
import torch.nn.functional as F
from torch import nn

import llem

class MLP(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, x):
        return self.net(x)

def points(count=4000):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=draw)
    mixed = torch.tanh(x @ torch.randn(8, 32, generator=draw))
    return x, (mixed @ torch.randn(32, 4, generator=draw)).argmax(1)

def ask(**more):
    words = dict(model=MLP, size="width", sizes=[4, 8, 16], dataset=points, batch=32,
                 loss_fn=F.cross_entropy, budget="1e7 FLOP", levels=2, ratio=2.0, out="c")
    return llem.find_optimal(**{**words, **more})
"""
SCRIPT = (
    MODEL
    + """
if __name__ == "__main__":
    import os, sys
    result = ask(out=sys.argv[1], progress=False)
    result.to_json(f"{sys.argv[1]}-{os.environ.get('RANK', 'alone')}.json")
"""
)
CHANGED = "class MLP(MLP):\n    def forward(self, x):\n        return 2 * self.net(x)"
COUNTED = "print(len({r['run_id'] for r in first.observations + third.observations}))"
ELSEWHERE = """\
try:
    ask(executor="slurm", site="slurm", out="s")
except llem.InputError as error:
    print(error)
"""
SOURCE = str(Path(llem.__file__).parents[1])
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": SOURCE}


def start(folder: Path, *words: str, out: str) -> dict[str, dict[str, Any]]:
    """Run the script in `folder`; by rank what its Result was."""
    (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *words, "script.py", out], cwd=folder, env=ENVIRONMENT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    written = {path.stem.rpartition("-")[2]: path for path in folder.glob(f"{out}-*.json")}
    return {rank: json.loads(path.read_text()) for rank, path in written.items()}


def accelerate(*words: str) -> list[str]:
    return ["-m", "accelerate.commands.launch", *words, "--num_processes", "2",
            "--main_process_port", "0"]  # fmt: skip


def test_accelerate_launch_divides_each_run_among_its_ranks(tmp_path: Path) -> None:
    """One campaign, not two; what else it tells its processes (FSDP, bf16) changes no run."""
    (alone,) = start(tmp_path, out="one").values()
    told = start(tmp_path, *accelerate("--use_fsdp", "--mixed_precision", "bf16"), out="two")
    assert set(told) == {"0", "1"} and told["0"] == told["1"]
    one = {row["run_id"]: row for row in alone["runs"]}
    two = {row["run_id"]: row for row in told["0"]["runs"]}
    assert set(two) == set(one) and len(two) == 6
    for name, row in two.items():
        assert math.isclose(row["loss"], one[name]["loss"], rel_tol=1e-5)
        attempts = list((tmp_path / "two" / "runs" / name).glob("attempt-*"))
        assert len(attempts) == 1
        ranks = [read_rank(path).steps for path in sorted(attempts[0].glob("rank-*.h5"))]
        assert len(ranks) == 2
        tokens = [int(steps["tokens_rank"].sum()) for steps in ranks]
        assert tokens[0] == tokens[1] and sum(tokens) == row["tokens"]


def test_where_accelerate_starts_one_process_on_a_cpu_it_trains_all(tmp_path: Path) -> None:
    """With --cpu it starts one, whatever --num_processes says: a campaign all the same."""
    told = start(tmp_path, *accelerate("--cpu"), out="c")
    assert set(told) == {"alone"} and len(told["alone"]["runs"]) == 6


def test_in_a_notebook_a_class_of_a_cell_is_trained_and_for_slurm_it_is_said_what_to_do(
    tmp_path: Path,
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (llem[test])")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed (llem[test])")
    import nbformat

    cells = [
        MODEL,
        "first = ask()\nfirst",
        # The class defined anew, as it was: nothing is trained again.
        f"{MODEL}\nsecond = ask()\n[r['run_id'] for r in second.observations]",
        # A changed line is another model.
        f"{CHANGED}\nthird = ask()\n{COUNTED}",
        ELSEWHERE,
        "import os\n{'RANK', 'WORLD_SIZE', 'MASTER_ADDR'} & set(os.environ)",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env={**ENVIRONMENT, "IPYTHONDIR": str(tmp_path / "ipython")})
    attempts = list((tmp_path / "c" / "runs").glob("*/attempt-*"))

    def said(cell: int) -> str:
        shown = book.cells[cell].outputs
        texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in shown]
        return "".join(texts)

    html = [o["data"]["text/html"] for o in book.cells[1].outputs if "data" in o]
    assert "6/6" in said(1) and "<table>" in html[0]
    assert "6 of 6 runs" in said(1)
    assert "1/6" not in said(2)
    assert said(3).splitlines()[-1] == "12" and len(attempts) == 12
    assert "give 'module:Class'" in said(4) and not (tmp_path / "s").exists()
    assert said(5) == "set()"
