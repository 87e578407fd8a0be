"""State, causes and waiting against the real scheduler, with jobs that fail at once."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from farm_site import farm_site

CAMPAIGN = """\
name: {name}
target: 4e11 FLOP
budget: 1.5e10 FLOP
model: {{vocabulary: 256, context: 128}}
data: {{builtin: python-sources, evaluation_tokens: 32768}}
grid: {{levels: 1, sizes: 3, span: 0.4}}
training: {{precision: fp32, rule: small, batch_tokens: 1024}}
layout: {{nodes: 1, gpus_per_node: 1}}
"""
SITE = farm_site(gpu_request="none", overlap=False, pack_s=0)
# What is wrong with each campaign's site, and how its runs are said to have died of it.
BROKEN = {
    "image": ("  container: {image: /no/such/llem.sif, gpu: none}\n", "container-missing",
              "could not open image"),
    "module": ("  modules: [NoSuchModule/1.0]\n", "module-failed", "module"),
    "program": ("", "program-missing", "torch"),
}  # fmt: skip
CONF = Path("/etc/slurm/slurm.conf")


@pytest.fixture(scope="module")
def plan_of(login):
    def plan_of(name, extra=""):
        login.write(f"{name}.yaml", CAMPAIGN.format(name=name) + SITE + extra)
        login.llem("plan", f"{name}.yaml", "--out", name)
        return login.home / name

    return plan_of


@pytest.fixture(scope="module")
def broken(login, plan_of):
    """All of them submitted together, and waited for."""
    for name, (extra, _, _) in BROKEN.items():
        plan_of(name, extra)
        login.llem("submit", name, "--no-finish")
    for name in BROKEN:
        done = login.llem("wait", name, "--timeout", "600s", check=False)
        assert done.returncode == 1, done.stderr


def status(login, name, **options):
    return json.loads(login.llem("status", name, "--json", **options).stdout)


@pytest.mark.parametrize("name", BROKEN)
def test_a_campaign_that_cannot_run_says_why_where_and_what_to_do(login, broken, name):
    _, expected, words = BROKEN[name]
    found = status(login, name)
    assert found["scheduler"]["answered"] and not found["active"]
    (cause,) = found["causes"]
    assert cause["name"] == expected and words in cause["text"]
    planned = json.loads((login.home / name / "plan.json").read_text())["runs"]
    assert cause["runs"] == len(found["runs"]) == len(planned) >= 2
    assert set(cause["nodes"]) <= {"n1", "n2", "n3", "n4"} and cause["nodes"]
    assert found["next"] == f"llem resubmit {name}"
    assert {r["status"] for r in found["runs"]} == {"failed"}
    shown = login.llem("status", name, env={"COLUMNS": "80"}).stdout
    assert expected in shown and cause["advice"][:20] in shown
    run = found["runs"][0]["run_id"]
    assert words in login.llem("logs", name, run[:8]).stdout


def test_accounting_told_the_ends_and_they_are_kept(login, broken):
    # It hears of an end a little late, and is asked again after half a minute.
    for _ in range(45):
        found = status(login, "image")
        kept = json.loads((login.home / "image/jobs/states.json").read_text())["final"]
        (elements,) = kept.values()
        if all(row[3] for row in elements.values()):
            break
        time.sleep(1)
    assert found["scheduler"]["accounting"] is True
    assert {row[0] for row in elements.values()} == {"FAILED"}
    assert all(re.fullmatch(r"\d+:\d+", row[3]) for row in elements.values())


def test_an_old_campaign_is_read_when_the_scheduler_has_forgotten_it(login, broken):
    """A controller that knows none of its jobs: here, one that is not there."""
    before = status(login, "image")
    conf = login.write("nowhere.conf", broken_conf())
    during = status(login, "image", env={"SLURM_CONF": str(conf)})
    assert not during["scheduler"]["answered"]
    assert "Unable to contact" in during["scheduler"]["problem"]
    assert during["scheduler"]["age_s"] >= 0
    assert during["causes"] == before["causes"] and during["counts"] == before["counts"]


def broken_conf():
    """This cluster's configuration, with the controller on a port where nobody listens."""
    text = re.sub(r"^MessageTimeout=.*$", "MessageTimeout=2", CONF.read_text(), flags=re.M)
    return re.sub(r"^(SlurmctldHost=.*)$", r"\1\nSlurmctldPort=3", text, flags=re.M)


def test_wait_goes_on_while_the_controller_does_not_answer(login, plan_of):
    plan_of("held", "  extra: {hold: true}\n")
    login.llem("submit", "held", "--no-finish")
    found = status(login, "held")
    assert "JobHeldUser" in {run["reason"] for run in found["runs"]}, found["runs"]
    assert any("release" in note for note in found["notes"])
    conf = login.write("moving.conf", broken_conf())
    waiting = subprocess.Popen(
        ["runuser", "-u", "llem", "--", "env", f"SLURM_CONF={conf}", f"HOME={login.home}",
         login.program, "wait", "held", "--timeout", "300s"],
        cwd=login.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        # until it was told at least once that nobody answers
        waiting.stderr.readline()
        assert waiting.poll() is None
        conf.write_text(CONF.read_text())
        login.llem("cancel", "held")
        _, err = waiting.communicate(timeout=300)
    finally:
        waiting.kill()
    assert waiting.returncode == 1, err
    assert "not over" not in err


def test_what_was_cancelled_is_said_to_be(login, plan_of):
    plan_of("gone", "  extra: {begin: now+1hour}\n")
    login.llem("submit", "gone", "--no-finish")
    login.llem("cancel", "gone")
    for _ in range(60):
        found = status(login, "gone")
        if not found["active"]:
            break
        time.sleep(0.5)
    assert set(found["counts"]) <= {"cancelled", "failed"} and "cancelled" in found["counts"]
    assert "cancelled" in {cause["name"] for cause in found["causes"]}
    counts = found["counts"]
    (array,) = found["arrays"]
    assert array["stopped"] == counts["cancelled"] and array["failed"] == counts.get("failed", 0)
    assert found["notes"][-1] == "stopped by `llem cancel`: `llem resubmit gone` goes on"
    shown = login.llem("status", "gone").stdout
    assert f"{counts['cancelled']} stopped" in shown
    # Submitting submits nothing twice, and says what would.
    done = login.llem("submit", "gone", "--no-finish")
    assert f"{counts['cancelled']} stopped" in done.stderr and "llem resubmit gone" in done.stderr
    before = json.loads((login.home / "gone/jobs/submitted.json").read_text())
    login.llem("resubmit", "gone", "--no-finish")
    after = json.loads((login.home / "gone/jobs/submitted.json").read_text())
    (entries,) = after.values()
    assert sum(map(len, after.values())) == sum(map(len, before.values())) + 1
    planned = json.loads((login.home / "gone/plan.json").read_text())["runs"]
    assert entries[-1]["elements"] == f"0-{len(planned) - 1}"
    assert status(login, "gone")["arrays"][0]["stopped"] == 0
    login.llem("cancel", "gone")


def test_jobs_that_everybody_has_forgotten_are_told_of_by_their_files_and_go_on(login, plan_of):
    """Their numbers are known to nobody, as after a new installation of the controller."""
    folder = plan_of("forgot")
    done = login.llem("cancel", "forgot")
    assert "nothing was submitted" in done.stderr
    login.llem("submit", "forgot", "--no-finish")
    login.llem("wait", "forgot", "--timeout", "60s", check=False)
    ledger = folder / "jobs/submitted.json"
    jobs = json.loads(ledger.read_text())
    for entries in jobs.values():
        for entry in entries:
            entry["job_id"] = str(10**6 + int(entry["job_id"]))
    ledger.write_text(json.dumps(jobs))
    (folder / "jobs/states.json").unlink()
    found = status(login, "forgot")
    assert found["scheduler"]["answered"] and not found["active"]
    assert found["next"] == "llem resubmit forgot"
    # End records still tell, logs of other numbers do not; what left no record is lost, not failed.
    (cause,) = found["causes"]
    assert set(found["counts"]) == {"failed"} and "torch" in cause["text"], cause
    for end in folder.glob("runs/*/attempt-*/end.json"):
        end.unlink()
    assert set(status(login, "forgot")["counts"]) == {"lost"}
    # No accounting either: what the real sacct says where none is kept.
    text = re.sub(r"^AccountingStorage.*$", "", CONF.read_text(), flags=re.M)
    conf = login.write("none.conf", text + "\nAccountingStorageType=accounting_storage/none\n")
    (folder / "jobs/states.json").unlink(missing_ok=True)
    found = status(login, "forgot", env={"SLURM_CONF": str(conf)})
    assert found["scheduler"]["accounting"] is False
    assert any("keeps no accounting" in note for note in found["notes"])
    done = login.llem("cancel", "forgot")
    assert "nothing to cancel: its one job has ended" in done.stderr
    login.llem("resubmit", "forgot", "--no-finish")
    login.llem("wait", "forgot", "--timeout", "60s", check=False)
    assert status(login, "forgot")["causes"][0]["name"] == "program-missing"


def test_a_campaign_whose_plan_is_gone_says_what_may_still_run(login, plan_of):
    folder = plan_of("planless", "  limits: {throttle: 1}\n")
    login.llem("submit", "planless", "--no-finish")
    (entry,) = next(iter(json.loads((folder / "jobs/submitted.json").read_text()).values()))
    plan = (folder / "plan.json").read_bytes()
    (folder / "plan.json").unlink()
    for command in ("status", "cancel", "resubmit"):
        done = login.llem(command, "planless", check=False)
        assert done.returncode == 2 and f"scancel {entry['job_id']}" in done.stderr
    # The same call plans the same again, and the campaign goes on.
    login.llem("plan", "planless.yaml", "--out", "planless")
    assert (folder / "plan.json").read_bytes() == plan
    login.llem("cancel", "planless")


def test_resubmitting_notes_what_its_jobs_cover(login, broken):
    """So that the scheduler is not asked about others for ever."""
    login.llem("resubmit", "module", "--no-finish")
    jobs = json.loads((login.home / "module/jobs/submitted.json").read_text())
    (entries,) = jobs.values()
    planned = json.loads((login.home / "module/plan.json").read_text())["runs"]
    assert entries[-1]["elements"] == f"0-{len(planned) - 1}"
    login.llem("wait", "module", "--timeout", "600s", check=False)
    assert status(login, "module")["causes"][0]["name"] == "module-failed"
