"""Campaigns whose elements train nothing, for tests of what happens around elements.

An element notes its run in `ran.log`, lasts a moment and leaves the end record that a training
would leave, with the loss of a published law. Everything else is real: `llem`'s commands, its
scripts (the site's template puts another block in the place of the ranks), SLURM. A command at the
login node may take longer than all elements do: `hold` has the later ones wait for it.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

USER = "llem"
POLL_S = 0.2

TEMPLATE = r"""
{% extends "array.sbatch.j2" %}
{% block work %}
line=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1)){p;q}" {{ manifest | quote }})
[[ $line =~ \"run_id\":\"([^\"]+)\",\"params\":([0-9]+), ]]
run=${BASH_REMATCH[1]} params=${BASH_REMATCH[2]}
[[ $line =~ \"tokens\":([0-9]+),\"flops\" ]]
tokens=${BASH_REMATCH[1]}
[[ $line =~ \"steps\":([0-9]+), ]]
steps=${BASH_REMATCH[1]}
attempt=0
mkdir -p "runs/$run"
until mkdir "runs/$run/attempt-$attempt" 2>/dev/null; do attempt=$((attempt + 1)); done
# One write to the end of the file: lines of elements that run at once do not mix.
printf '%s %s %s\n' "$run" "$SLURM_ARRAY_JOB_ID" "$SLURM_ARRAY_TASK_ID" >> ran.log
began=${EPOCHREALTIME/./}000
sleep PAUSE
number=$(wc -l < ran.log)
while [ "$number" -gt "$(cat hold 2>/dev/null || echo "$number")" ]; do sleep .2; done
if [ -e broken ]; then exit 3; fi
# Hoffmann et al. 2022, with a hundredth of noise.
loss=$(awk "BEGIN { srand($((16#${run:0:6}))); printf \"%.5f\",
  (1.69 + 406.4 / $params ^ .34 + 410.7 / $tokens ^ .28) * (1 + .01 * (rand() - .5)) }")
ended=${EPOCHREALTIME/./}000
cat > "runs/$run/attempt-$attempt/.end" <<END
{"schema": "llem-end-1", "run_id": "$run", "attempt": $attempt, "status": "completed", "reason": "",
 "step": $steps, "steps": $steps, "tokens": $tokens, "loss": $loss, "loss_se": 0.001, "ranks": 1,
 "t0_ns": $began, "t1_ns": $ended, "started_ns": $began, "ended_ns": $ended, "energy_j": 1.0,
 "host": "$SLURMD_NODENAME", "hosts": ["$SLURMD_NODENAME"], "boot_id": "standin"}
END
mv "runs/$run/attempt-$attempt/.end" "runs/$run/attempt-$attempt/end.json"
{% endblock %}
"""
CAMPAIGN = """\
name: {name}
target: 1e16 FLOP
budget: 1e15 FLOP
model: {{vocabulary: 256, context: 128}}
data: {{builtin: python-sources, evaluation_tokens: 32768}}
training: {{precision: fp32, rule: small, batch_tokens: 1024}}
layout: {{nodes: 1, gpus_per_node: 1}}
{extra}site:
  name: farm
  partition: many
  nodes: 4
  gpus_per_node: 2
  gpu: {{name: cpu}}
  gpu_request: none
  overlap: false
  pack_s: 0
  memory_per_node: 100M
  template: {name}.sbatch.j2
  limits: {{{limits}}}
"""
# Notes each call and becomes the real program.
WRAPPER = """\
#!/bin/sh
echo "$(date +%s.%N) $PPID {program} $*" >> {calls}
exec {real} "$@"
"""
ASKING = ("squeue", "sacct", "scontrol", "sinfo", "sbatch", "scancel", "sacctmgr")


class Standin:
    """One campaign of stand-in elements in the user's home."""

    def __init__(self, login: Any, name: str, *, limits: str = "", pause_s: float = 0.2,
                 extra: str = ""):  # fmt: skip
        self.login = login
        self.name = name
        self.folder = login.home / name
        login.write(f"{name}.sbatch.j2", TEMPLATE.lstrip().replace("PAUSE", f"{pause_s:g}"))
        text = CAMPAIGN.format(name=name, limits=limits, extra=extra)
        self.file = login.write(f"{name}.yaml", text)

    def plan(self, *words: str) -> dict[str, Any]:
        self.login.llem("plan", self.file, "--out", self.name, *words)
        return self.planned

    @property
    def planned(self) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads((self.folder / "plan.json").read_text())
        return plan

    @property
    def run_ids(self) -> list[str]:
        return [run["run_id"] for run in self.planned["runs"]]

    @property
    def ran(self) -> list[list[str]]:
        """Run, job and index of every element that began, in their order."""
        try:
            return [line.split() for line in (self.folder / "ran.log").read_text().splitlines()]
        except FileNotFoundError:
            return []

    @property
    def jobs(self) -> dict[str, list[dict[str, Any]]]:
        """`jobs/submitted.json`."""
        try:
            jobs: dict[str, list[dict[str, Any]]] = json.loads(
                (self.folder / "jobs" / "submitted.json").read_text()
            )
        except FileNotFoundError:
            return {}
        return jobs

    @property
    def job_ids(self) -> list[str]:
        return [entry["job_id"] for entries in self.jobs.values() for entry in entries]

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.login.llem("status", self.name, "--json").stdout)
        return told

    def assert_each_ran_once(self) -> None:
        """Every planned run began once, and nothing else ran."""
        times = Counter(run for run, *_ in self.ran)
        twice = {run: n for run, n in times.items() if n > 1}
        assert not twice, f"{len(twice)} runs ran again: {list(twice.items())[:3]}"
        assert set(times) == set(self.run_ids)

    def until(self, count: int, process: Any = None, *, timeout_s: float = 600.0) -> None:
        """Wait until so many elements began; `process` must live as long."""
        deadline = time.monotonic() + timeout_s
        while len(self.ran) < count:
            assert time.monotonic() < deadline, f"{len(self.ran)} of {count} elements began"
            assert process is None or process.poll() is None, process.communicate()
            time.sleep(POLL_S)

    def hold(self, most: int) -> None:
        """Elements that begin after so many do not end before `let_go`."""
        path = self.login.write(f"{self.name}/.hold", str(most))
        path.rename(path.with_name("hold"))

    def let_go(self) -> None:
        (self.folder / "hold").unlink()

    def start(self, *words: Any, path: Path | None = None) -> subprocess.Popen[str]:
        """A command of the user's that goes on beside the test; `path` comes first on its PATH."""
        first = f"{path}:" if path else ""
        return subprocess.Popen(
            [str(self.login.program), *map(str, words)],
            cwd=self.login.home,
            env={"PATH": first + os.environ["PATH"], "HOME": str(self.login.home), "USER": USER},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            user=USER,
            group=USER,
            extra_groups=[],
        )


class Counted:
    """Wrappers of the scheduler's programs in a folder for PATH, and the calls that they noted."""

    def __init__(self, login: Any, name: str):
        self.path = login.home / f"bin-{name}"
        self.path.mkdir()
        self.calls_file = login.write(f"bin-{name}/calls", "")
        for program in ASKING:
            text = WRAPPER.format(program=program, calls=self.calls_file,
                                  real=shutil.which(program))  # fmt: skip
            login.write(f"bin-{name}/{program}", text).chmod(0o755)

    @property
    def calls(self) -> list[tuple[float, str, str]]:
        """Time (s), program and its words, in their order."""
        found = []
        for line in self.calls_file.read_text().splitlines():
            seconds, _, program, *words = line.split(maxsplit=3)
            found.append((float(seconds), program, " ".join(words)))
        return sorted(found)


def timed(login: Any, *words: Any) -> tuple[float, float, str]:
    """Wall and processor seconds of a command of the user's as a process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    done = login.llem(*words)
    wall_s = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_s, cpu_s, done.stdout


def limit_submitted(count: int | None) -> None:
    """What accounting lets the user have in the queue at a time; None is no limit."""
    value = -1 if count is None else count
    subprocess.run(
        ["sacctmgr", "-i", "modify", "user", USER, "set", f"MaxSubmitJobs={value}"],
        check=True, capture_output=True,
    )  # fmt: skip
