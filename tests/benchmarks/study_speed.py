#!/usr/bin/env python3
"""How long `llem plan` takes for a study of 5,120 deployments, and what a wrong key says.

    python tests/benchmarks/study_speed.py            # under a minute

Timed as a process, from nothing to the last file on disk: imports, expansion, validation, cost and
memory of every deployment, elements, plan.json, scripts and manifests. Processor seconds are those
of user and system; of several calls the least counts, and the median is told. The same study with
one wrong key must end in one fault. Wanted: under 2 s (llenergymeasure 0.7.0 takes 23 s of wall
time for as many, and tells a wrong key once for each).
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
# As installed: imported from compiled files.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

REPEATS = 7
WANTED_S = 2.0
STUDY = """\
name: speed
workload: inference
models:
  m: {config: {model_type: llama, hidden_size: 512, num_hidden_layers: 8, num_attention_heads: 8,
      intermediate_size: 1408, vocab_size: 32000, max_position_embeddings: 4096}}
prompts: {synthetic: {input_tokens: 128, output_tokens: 64, count: 64}}
sweep:
  grid:
    options.batch_size: [1, 2, 4, 8, 16, 32, 64, 128]
    options.KEY: [fp32, bf16]
    options.attention: [eager, sdpa]
    options.compile: [false, true]
    options.cache: [dynamic, static]
    options.beams: [1, 2, 3, 4, 5]
    prompts.synthetic.output_tokens: [16, 32, 64, 128]
    prompts.synthetic.input_tokens: [32, 128]
cycles: 1
site: {name: cluster, executor: slurm, nodes: 4, gpus_per_node: 4, gpu: {name: A100-80GB}}
"""


def plan(key: str, folder: Path) -> tuple[float, float, subprocess.CompletedProcess[str]]:
    """Wall-clock and processor seconds of one call, and how it ended."""
    (folder / "campaign.yaml").write_text(STUDY.replace("KEY", key))
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "llem", "plan", "campaign.yaml", "--out", "out", "--replace"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall_s = time.perf_counter() - begun
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = (used.ru_utime + used.ru_stime) - (before.ru_utime + before.ru_stime)
    return wall_s, spent, done


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="llem-study-") as name:
        folder = Path(name)
        plan("precision", folder)
        calls = [plan("precision", folder) for _ in range(REPEATS)]
        first = calls[0][2].stdout.splitlines()[0]
        wrong = plan("precison", folder)
    processor = [spent for _, spent, _ in calls]
    print(first)
    print(f"wall-clock, median {statistics.median(wall for wall, _, _ in calls):.2f} s; processor, "
          f"median {statistics.median(processor):.2f} s, least {min(processor):.2f} s")  # fmt: skip
    faults = wrong[2].stderr.strip().splitlines()
    print(f"one wrong key: exit {wrong[2].returncode}, {wrong[1]:.2f} s, {len(faults)} line(s):")
    print("\n".join(faults))
    met = "5120 deployments" in first and min(processor) < WANTED_S
    one = wrong[2].returncode == 2 and len(faults) == 1 and "did you mean 'precision'?" in faults[0]
    print(f"under {WANTED_S:g} s: {'met' if met else 'NOT MET'}; "
          f"one fault: {'met' if one else 'NOT MET'}")  # fmt: skip
    return 0 if met and one else 1


if __name__ == "__main__":
    sys.exit(main())
