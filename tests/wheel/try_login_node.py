"""Run by the Python of an environment that holds llem's wheel and nothing else: a login node.

    python try_login_node.py        # in an empty folder; prints a line for each thing shown

Every command that a login node runs must work there without torch: on a campaign whose records are
written here with llem's own writer, from a law that is known.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from llem.records import SAMPLES, host_meta, node_writer, rank_writer, samples_table

LLEM = Path(sys.executable).with_name("llem")
PYTHON = sys.executable
POWER_W = 100.0
CAMPAIGN = """\
name: login
target: 1e13 FLOP
budget: 1e12 FLOP
model: {vocabulary: 256, context: 128}
training: {precision: fp32, rule: small}
layout: {nodes: 2, gpus_per_node: 1}
site:
  name: farm
  nodes: 4
  partition: gpu
  gpu: {name: cpu}
  container: {image: /images/llem.sif, gpu: none}
"""


def main() -> int:
    for absent in ("torch", "accelerate", "deepspeed", "matplotlib"):
        assert find_spec(absent) is None, f"{absent} is installed: this is no login node"
    tell("neither torch nor matplotlib is installed")
    start_up()
    Path("campaign.yaml").write_text(CAMPAIGN)
    llem("plan", "campaign.yaml", "--out", "c")
    plan = json.loads(Path("c/plan.json").read_text())
    tell(f"plan: {len(plan['runs'])} runs")
    scripts = json.loads(llem("submit", "c", "--dry-run", "--json"))["scripts"]
    assert any("#SBATCH --array=" in text for text in scripts.values())
    tell(f"submit --dry-run: {len(scripts)} scripts")
    state = json.loads(llem("status", "c", "--json"))
    assert state["counts"] == {"waiting": len(plan["runs"])}
    tell("status")
    for index, run in enumerate(plan["runs"]):
        write_records(run, np.random.default_rng(index))
    rows = json.loads(llem("aggregate", "c", "--json"))["observations"]
    assert {row["status"] for row in rows} == {"completed"}
    tell(f"aggregate: {len(rows)} observations")
    # The planted law's best sizes lie beyond two slices of the grid, which is told, and overridden.
    fit = json.loads(llem("fit", "c", "--json", "--bootstrap", "200", "--allow-edge-minima"))
    assert fit["refusals"]["allowed"], fit["refusals"]
    assert abs(fit["params"]["alpha"] - 0.35) < 0.1, fit["params"]
    tell(f"fit: alpha {fit['params']['alpha']:.3f}, planted 0.35")
    llem("report", "c")
    page = Path("c/results/report.html").read_text()
    assert "llem[plot]" in page
    tell("report, which says why it has no plots")
    checks = json.loads(llem("doctor", "--json", status=1))["checks"]
    assert {"python", "HDF5 records", "training"} <= {check["name"] for check in checks}
    tell("doctor, which says that training needs more")
    return 0


def llem(*words: str, status: int = 0) -> str:
    done = subprocess.run([LLEM, *words], capture_output=True, text=True, check=False)
    assert done.returncode == status, f"llem {words}: {done.returncode}\n{done.stderr}"
    return done.stdout


def tell(text: str) -> None:
    print(f"login node: {text}", flush=True)


def start_up() -> None:
    """`llem --help` within five times `python -c pass`, `import llem` within twice.

    The three take turns, so that a drift of the machine's speed meets all of them.
    """
    commands = {
        "pass": [PYTHON, "-c", "pass"],
        "import": [PYTHON, "-c", "import llem"],
        "help": [str(LLEM), "--help"],
    }
    took: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(15):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            took[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in took.items()}
    help_ratio = middle["help"] / middle["pass"]
    import_ratio = middle["import"] / middle["pass"]
    tell(f"start-up: --help {help_ratio:.2f} x, import {import_ratio:.2f} x of `python -c pass`")
    assert help_ratio < 5
    assert import_ratio < 2


def write_records(run: dict, noise: np.random.Generator) -> None:
    """The records of two ranks on two nodes, for a loss that follows a planted law."""
    attempt = Path("c/runs") / run["run_id"] / "attempt-0"
    attempt.mkdir(parents=True)
    loss = 1.2 + 60 * run["params"] ** -0.35 + 90 * run["tokens"] ** -0.4
    loss *= 1 + 0.002 * noise.standard_normal()
    t0_ns, seconds = time.monotonic_ns(), run["flops"] / 1e10
    t1_ns = t0_ns + int(seconds * 1e9)
    meta = {"run_id": run["run_id"], "attempt": 0, "world": 2, "world_size": 2}
    for rank in range(2):
        node = f"n{rank + 1}"
        host = {**host_meta(), "host": node, "boot_id": node}
        with rank_writer(
            attempt / f"rank-{rank:05d}.h5", meta={**meta, **host, "rank": rank, "node": node}
        ) as writer:
            edges = np.linspace(t0_ns, t1_ns, run["steps"] + 1).astype(int)
            tokens = run["batch_tokens"] // 2
            for step in range(run["steps"]):
                span = (int(edges[step]), int(edges[step + 1]))
                row = (step, *span, tokens, tokens, loss, 1.0, 0.01, np.nan, np.nan, 1)
                writer.append("steps", row)
            if rank == 0:
                writer.append("evals", (run["steps"], t1_ns, t1_ns, loss, 0.01, 10_000))
        device = {"domain": "gpu", "contains": [], "counter": True, "source": "nvml",
                  "quality": "counter", "name": "planted"}  # fmt: skip
        path = attempt / f"node-{node}.h5"
        with node_writer(path, meta={**meta, **host}, devices={f"GPU-{node}": device}) as writer:
            for t_ns in np.linspace(t0_ns, t1_ns, 50).astype(int):
                energy_mj = 1e3 * POWER_W * (t_ns - t0_ns) / 1e9
                sample = (t_ns, 1000, energy_mj, 1e3 * POWER_W, 50.0, 90.0, 1500.0, 0, 0)
                assert len(sample) == len(SAMPLES)
                writer.append(samples_table(f"GPU-{node}"), sample)
    wall_ns = time.time_ns()
    end = {
        "schema": "llem-end-1", "run_id": run["run_id"], "attempt": 0, "status": "completed",
        "reason": "", "step": run["steps"], "steps": run["steps"], "tokens": run["tokens"],
        "loss": loss, "loss_se": 0.01, "started_ns": wall_ns, "ended_ns": wall_ns + t1_ns - t0_ns,
        "t0_ns": t0_ns, "t1_ns": t1_ns, "hosts": ["n1", "n2"], "ranks": 2, "host": "n1",
        "boot_id": "n1", "resumed_from": None,
    }  # fmt: skip
    (attempt / "end.json").write_text(json.dumps(end))


if __name__ == "__main__":
    sys.exit(main())
