"""llem's own commands at the login node, killed at any moment: the same call again ends well.

One campaign of eight runs goes undisturbed from plan to law; another, of the same plan, has every
command killed again and again, each time a little later, until one call comes to its end.
"""

import csv
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_site

CAMPAIGN = """\
name: law
target: 4e11 FLOP
budget: 1.5e11 FLOP
model: {vocabulary: 256, context: 128}
data: {builtin: python-sources, evaluation_tokens: 32768}
grid: {levels: 2, sizes: 4, ratio: 3, span: 0.4}
training: {precision: fp32, rule: small, batch_tokens: 1024}
layout: {nodes: 1, gpus_per_node: 1, zero_stage: 0}
"""
# A command that needs seconds is killed about this often.
KILLS = 12 if os.environ.get("LLEM_ALL_FAULTS") else 4


class Kills:
    """Calls a command until it ends by itself, killed later each time; how often it was killed."""

    def __init__(self, login):
        self.login = login
        self.user = pwd.getpwnam("llem")

    def __call__(self, *words, step_s, check=lambda: None):
        kills = 0
        while True:
            kills += 1
            assert kills < 200, f"{words} does not come to its end"
            process = subprocess.Popen(
                [self.login.program, *words],
                cwd=self.login.home,
                env={"PATH": os.environ["PATH"], "HOME": str(self.login.home), "USER": "llem"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                user=self.user.pw_uid,
                group=self.user.pw_gid,
                extra_groups=[],
                start_new_session=True,
            )
            try:
                said, told = process.communicate(timeout=kills * step_s)
            except subprocess.TimeoutExpired:
                # The command alone: sbatch, if it is at work, goes on as it would.
                os.kill(process.pid, signal.SIGKILL)
                process.communicate()
                check()
                continue
            if "is in use by" in told:
                # An sbatch that the last one left behind is still at work.
                continue
            assert process.returncode == 0, told
            return kills - 1, said


def seconds_of(call):
    begun = time.monotonic()
    call()
    return time.monotonic() - begun


def whole(path):
    """A file of results is there whole or not at all."""
    if path.suffix == ".json":
        return not path.exists() or bool(json.loads(path.read_text()))
    if not path.exists():
        return True
    with open(path, newline="") as file:
        rows = list(csv.reader(file))
    return len(rows) == 1 + 8 and len({len(row) for row in rows}) == 1


def elements(folder):
    """Each element that a job of the ledger covers, as (array, index)."""
    submitted = json.loads((folder / "jobs" / "submitted.json").read_text())
    return [(name, job["elements"]) for name, jobs in submitted.items() for job in jobs]


@pytest.fixture(scope="module")
def undisturbed(login, image, nvml):
    site = farm_site(
        image, nvml, gpus_per_node=1, gpu={"name": "cpu", "power_w": 250}, pack_s=1.6,
        limits={"array_size": 1, "time": "30m"},
    )  # fmt: skip
    login.write("law.yaml", CAMPAIGN + site)
    login.llem("plan", "law.yaml", "--out", "law")
    login.llem("submit", "law")
    login.llem("wait", "law", timeout=600)
    return login.home / "law"


@pytest.fixture(scope="module")
def disturbed(login, image, nvml, repeat, undisturbed):
    """The same plan, each command of it killed; how often."""
    name = f"hunted-{repeat}"
    kills = Kills(login)
    since = time.strftime("%Y-%m-%dT%H:%M:%S")
    login.llem("plan", "law.yaml", "--out", name)
    folder = login.home / name
    results = folder / "results"
    counts = {}
    # Each sbatch is some hundredths of a second.
    counts["submit"], _ = kills("submit", name, "--no-finish", step_s=0.25 / KILLS)
    login.llem("wait", name, timeout=600)
    # How long a command needs is seen on the campaign that is done; steps are half as long as that
    # asks for, since the machine may have less else to do by then.
    took_s = seconds_of(lambda: login.llem("aggregate", "law"))
    counts["aggregate"], _ = kills(
        "aggregate", name, step_s=took_s / KILLS / 2, check=lambda: assert_whole(results)
    )
    for command in ("fit", "finish"):
        took_s = seconds_of(lambda command=command: login.llem(command, "law"))
        counts[command], _ = kills(
            command, name, step_s=took_s / KILLS / 2, check=lambda: assert_whole(results)
        )
    with open(login.home / "faults.jsonl", "a") as file:
        file.write(json.dumps({"cell": name, "killed": counts}) + "\n")
    return folder, counts, since


def assert_whole(results):
    assert whole(results / "observations.csv")
    assert whole(results / "fit.json")


def test_each_command_was_killed_before_it_had_ended(disturbed):
    _, counts, _ = disturbed
    assert set(counts) == {"submit", "aggregate", "fit", "finish"}
    assert min(counts.values()) >= max(2, KILLS // 4), counts


def test_a_submission_cut_off_submits_each_element_once(disturbed, login):
    folder, _, since = disturbed
    plan = json.loads((folder / "plan.json").read_text())
    expected = sorted(
        (array["name"], str(i)) for array in plan["arrays"] for i in range(len(array["elements"]))
    )
    assert sorted(elements(folder)) == expected
    # by the scheduler's own count; a session before this one had folders of the same names
    asked = ["sacct", "-n", "-X", "-P", "-S", since, "-u", "llem", "-o", "JobID,WorkDir"]
    said = login.run(*asked).stdout
    jobs = [line for line in said.splitlines() if line.endswith(f"|{folder}")]
    assert len(jobs) == len(expected), said
    for run in plan["runs"]:
        assert len(list((folder / "runs" / run["run_id"]).glob("attempt-*"))) == 1


def test_the_law_is_that_of_the_undisturbed_campaign(disturbed, undisturbed):
    folder, _, _ = disturbed
    table = {}
    for place in (folder, undisturbed):
        with open(place / "results" / "observations.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        table[place] = sorted((row["params"], row["tokens"], row["loss"]) for row in rows)
    # to the bit
    assert table[folder] == table[undisturbed]
    fits = [json.loads((p / "results" / "fit.json").read_text()) for p in (folder, undisturbed)]
    assert fits[0]["params"] == fits[1]["params"]
    report = folder / "results" / "report.html"
    assert report.read_text().rstrip().endswith("</html>")
