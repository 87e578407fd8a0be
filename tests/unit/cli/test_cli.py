"""The command line: what it says when it is called rightly and wrongly."""

import errno
import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from llem.cli import COMMANDS, main


def started(*words, cwd=None):
    """The command as a process of its own, for what only that shows."""
    command = [sys.executable, "-m", "llem", *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def llem(tmp_path, monkeypatch, capsys):
    """The command in this process and in the test's folder: its status and what it wrote."""
    monkeypatch.chdir(tmp_path)

    def call(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        told = capsys.readouterr()
        return SimpleNamespace(returncode=status, stdout=told.out, stderr=told.err)

    return call


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "llem: No space left on device\n"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "llem: /x: Read-only file system\n"),
    ],
)
def test_what_the_filesystem_refuses_is_told_with_what_to_do(llem, monkeypatch, error, words):
    """A full disk, too, of which the system names no file."""

    def refuse(*_args, **_options):
        raise error

    monkeypatch.setattr("llem.pipeline.plan_campaign", refuse)
    done = llem("plan")
    assert done.returncode == 1
    assert words in done.stderr and "  -> " in done.stderr


def test_help_lists_every_command_and_tells_examples(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert "examples:" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    assert f"llem {name}" in capsys.readouterr().out.split("example:")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "usage"),
        (["plam"], "did you mean 'plan'?"),
        (["plan", "--buget", "1"], "did you mean '--budget'?"),
        (["plan", "--budget", "3 parsec"], "unknown unit 'parsec'"),
        (["plan", "--budget", ""], "--budget: cannot read ''"),
        (["plan", "nowhere.yaml"], "no such file"),
        (["submit", "nowhere"], "make one with `llem plan`"),
        (["fit", "nowhere.csv"], "no such file"),
        (["fit", "x.csv", "--delta", "0", "--bootstrap", "-1"], "2 faults"),
        (["aggregate", "nowhere", "--pue", "0.5"], "below 1"),
        (["aggregate", "nowhere", "--carbon", "-3"], "no carbon intensity"),
        (["aggregate", "nowhere", "--idle-power", "-1"], "is negative"),
        (["aggregate", "nowhere", "--slurm", "--no-cache", "--elements", "0"], "2 faults"),
        (["aggregate", "nowhere", "--elements", "2"], "is for --slurm"),
        (["init", "--site", "laptopp"], "did you mean 'laptop'"),
        (["measure", "--out", "x.h5"], "is missing"),
        (["image", "build", "--out", "x.sif", "--wheelhouse", "nowhere"], "not a folder"),
        (["doctor", "--site", "nowhere"], "no site profile"),
        (["doctor", "--site", "lumi_g"], "did you mean 'lumi-g'?"),
        (["doctor", "--site", "nowhere.yaml"], "no such file"),
        (["doctor", "--job"], "has no scheduler"),
        (["doctor", "--site", "frontier", "--job", "--nodes", "92"], "allows 1 to 91"),
    ],
)
def test_a_wrong_call_ends_with_status_2_and_says_what_to_do(
    words, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    captured = capsys.readouterr()
    assert says in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_plan_writes_a_folder_and_nothing_a_second_time(llem, tmp_path):
    first = llem("plan", "--out", "c", "--json")
    assert first.returncode == 0, first.stderr
    plan = json.loads(first.stdout)
    assert plan["totals"]["runs"] == len(plan["runs"])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*") if p.is_file()}
    second = llem("plan", "--out", "c")
    assert "nothing was changed" in second.stderr
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "c").rglob("*") if p.is_file()} == before


def test_plan_shows_what_will_run_and_what_it_costs(llem, tmp_path):
    done = llem("plan", "--out", "c", "--dry-run")
    assert "20 runs" in done.stdout
    assert "expected:" in done.stdout
    assert "rests on:" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_utf8_ends_no_command(llem, tmp_path, monkeypatch, encoding):
    assert llem("plan", "--out", "c").returncode == 0
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["status", "c"]) == 0  # with a bar of box characters
    stream.flush()
    assert b"of 20 runs done" in written.getvalue() or b"20 waiting" in written.getvalue()


def test_what_to_type_next_can_be_pasted_whatever_the_folder_is_called(llem):
    made = llem("init", "--out", "my campaign.yaml")
    assert made.stderr.endswith("next: llem plan 'my campaign.yaml'\n")
    planned = llem("plan", "my campaign.yaml", "--out", "Étude 1")
    assert planned.stderr.endswith("next: llem submit 'Étude 1'\n")
    assert llem("status", "Étude 1").stdout.endswith("next: llem submit 'Étude 1'\n")


def test_init_writes_a_campaign_that_plans(llem, tmp_path):
    assert llem("init").returncode == 0
    assert llem("init").returncode == 2
    done = llem("plan", "--out", "c")
    assert done.returncode == 0, done.stderr


def test_init_writes_a_study_that_plans(llem):
    assert llem("init", "--workload", "inference").returncode == 0
    done = llem("plan", "--out", "c")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("serving: 3 deployments x 3 cycles = 9 runs")


@pytest.mark.parametrize("option", ["--runs", "--waves"])
def test_options_of_trainings_are_refused_for_a_study(llem, option):
    llem("init", "--workload", "inference")
    done = llem("plan", option, "3")
    assert done.returncode == 2
    assert f"{option}: is of trainings" in done.stderr


def test_rehearse_and_calibrate_say_that_a_study_is_not_theirs(llem):
    llem("init", "--workload", "inference")
    for command in ("rehearse", "calibrate"):
        done = llem(command, "campaign.yaml")
        assert done.returncode == 2
        assert "this is for campaigns of trainings" in done.stderr


def test_fit_of_a_table_needs_three_columns_and_names_those_that_lack(llem, tmp_path):
    (tmp_path / "x.csv").write_text("param,tokens\n1,2\n")
    done = llem("fit", "x.csv")
    assert done.returncode == 2
    assert "params: column is missing (did you mean 'param'?)" in done.stderr
    assert "loss: column is missing" in done.stderr


def test_fit_of_a_table_finds_the_law_it_was_made_from(llem, tmp_path):
    rows = ["N,D,L"]
    for params in (1e6, 3e6, 1e7, 3e7):
        for tokens in (2e7, 1e8, 5e8):
            rows.append(f"{params},{tokens},{1.5 + 300 * params**-0.4 + 500 * tokens**-0.35}")
    (tmp_path / "x.csv").write_text("\n".join(rows))
    words = ["fit", "x.csv", "--json", "--bootstrap", "0", "--target", "1e17"]
    done = llem(*words)
    assert done.returncode == 0, done.stderr
    fit = json.loads(done.stdout)
    truth = {"E": 1.5, "A": 300, "B": 500, "alpha": 0.4, "beta": 0.35}
    assert fit["params"] == pytest.approx(truth, rel=1e-4)
    assert fit["optima"][0]["target"] == {"value": 1e17, "unit": "FLOP"}


def test_json_stands_alone_on_standard_output(tmp_path):
    done = started("plan", "--out", "c", "--json", cwd=tmp_path)
    json.loads(done.stdout)
    assert "campaign.yaml" in done.stderr


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = f"{sys.executable} -m llem plan --dry-run --json --out c | head -c 10"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=tmp_path, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_measure_and_energy_tell_joules_with_their_quality(tmp_path):
    words = ["measure", "--out", "run.h5", "--", sys.executable, "-c", "sum(range(10**7))"]
    done = started(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    energy = json.loads(started("energy", "run.h5", "--json", cwd=tmp_path).stdout)
    assert energy["energy_j"] > 0
    device = energy["devices"][0]
    assert {"uuid", "domain", "source", "quality", "duration_s", "coverage", "reason"} <= set(
        device
    )
    assert started("energy", "nowhere.h5", cwd=tmp_path).returncode == 2


def test_measure_passes_on_the_status_of_what_it_measured(tmp_path):
    words = ["measure", "--out", "run.h5", "--", sys.executable, "-c", "raise SystemExit(7)"]
    assert started(*words, cwd=tmp_path).returncode == 7


def test_doctor_takes_a_site_a_campaign_file_or_a_folder_with_its_image(
    llem, tmp_path, monkeypatch
):
    from llem.cli.doctor import named

    image = tmp_path / "x.sif"
    image.write_bytes(b"an image")
    (tmp_path / "c.yaml").write_text(
        "name: x\ntarget: 1e13\nbudget: 1e12\nmodel: {vocabulary: 256, context: 128}\n"
        f"site: {{base: slurm, container: {{image: {image}}}}}\n"
    )
    assert llem("plan", "c.yaml", "--out", "c").returncode == 0
    monkeypatch.chdir(tmp_path)
    assert [named(text)[0].name for text in ("laptop", "c.yaml", "c")] == ["laptop"] + 2 * ["slurm"]
    assert [named(text)[1][:7] for text in ("laptop", "c.yaml", "c")] == ["", "", "sha256:"]


def test_doctor_tells_people_and_machines_the_same(tmp_path):
    told = started("doctor", "--json", cwd=tmp_path)
    checks = json.loads(told.stdout)
    assert told.returncode == (0 if checks["ok"] else 1)
    shown = started("doctor", cwd=tmp_path).stdout
    for check in checks["checks"]:
        assert f"[{check['state']:>4}] {check['name']}" in shown


def test_init_names_what_only_the_user_knows_of_a_shipped_site(llem, tmp_path):
    assert llem("init", "--site", "lumi-g").returncode == 0
    text = (tmp_path / "campaign.yaml").read_text()
    assert "site: {base: lumi-g}" in text
    assert "give here: account, container.image" in text


def test_refining_what_is_no_campaign_makes_nothing(tmp_path, capsys):
    assert main(["plan", "--refine", str(tmp_path / "none")]) == 2
    assert "not a campaign folder" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
