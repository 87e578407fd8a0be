"""`llem rehearse` as a user calls it."""

import json
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stdout
from io import StringIO

import pytest

from llem.cli import main

CAMPAIGN = """
name: tiny
target: 1e12 FLOP
budget: 2e11 FLOP
model: {family: llama, vocabulary: 256, context: 64}
data: {builtin: python-sources, evaluation_tokens: 16384}
grid: {levels: 3, sizes: 4}
training: {precision: fp32, rule: small}
site: laptop
"""


@pytest.fixture(scope="module", autouse=True)
def undrawn():
    """Reports without plots, which take most of a rehearsal's time and are tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llem.report.page.can_plot", lambda: False)
        yield


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "campaign.yaml").write_text(CAMPAIGN)
    return tmp_path


@pytest.fixture(scope="module")
def played(undrawn, tmp_path_factory):
    """A folder with a plan and its rehearsal, and what the rehearsal told."""
    place = tmp_path_factory.mktemp("rehearse")
    (place / "campaign.yaml").write_text(CAMPAIGN)
    with chdir(place), redirect_stdout(StringIO()) as told:
        assert main(["plan", "campaign.yaml", "--out", "real"]) == 0
        before = {p: p.read_bytes() for p in (place / "real").rglob("*") if p.is_file()}
        assert main(["rehearse", "real", "--instant"]) == 0
    assert before == {p: p.read_bytes() for p in (place / "real").rglob("*") if p.is_file()}
    return place, told.getvalue()


def test_a_plan_is_played_into_a_folder_beside_it_and_its_law_found_again(played):
    place, told = played
    assert "begins:" in told and "completed: loss" in told
    assert "training starts" in told and "model: llama" in told
    assert "planted and found again" in told and "REHEARSED" in told
    for name in ("rehearsal.json", "results/fit.json", "results/report.html"):
        assert (place / "real-rehearsal" / name).is_file()


def test_lines_stand_in_the_order_of_their_times(played):
    stamps = [line[1:20] for line in played[1].splitlines() if line[:3] == "[20"]
    assert len(stamps) > 40 and stamps == sorted(stamps)


def test_an_earlier_rehearsal_stays_until_it_is_to_be_replaced(played, capsys):
    place = played[0]
    with chdir(place):
        assert main(["rehearse", "real", "--instant"]) == 2
    assert "--replace it" in capsys.readouterr().err


def test_a_real_campaign_is_no_place_for_a_rehearsal(played, capsys):
    with chdir(played[0]):
        assert main(["rehearse", "campaign.yaml", "--out", "real", "--replace"]) == 2
    assert "is no rehearsal" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["submit", "resubmit", "cancel"])
def test_what_was_rehearsed_is_not_submitted(played, capsys, command):
    assert main([command, str(played[0] / "real-rehearsal")]) == 2
    assert "was rehearsed" in capsys.readouterr().err


def test_status_says_that_it_was_rehearsed(played, capsys):
    assert main(["status", str(played[0] / "real-rehearsal")]) == 0
    assert "REHEARSED" in capsys.readouterr().out


def test_json_stands_alone_and_names_the_law_the_fit_and_how_attempts_ended(campaign, capsys):
    assert main(["rehearse", "campaign.yaml", "--json", "--law", "hoffmann", "--seed", "4"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["rehearsal"]["name"] == "hoffmann" and told["rehearsal"]["seed"] == 4
    assert told["fit"]["provenance"]["rehearsal"]["law"] == told["rehearsal"]["law"]
    assert sum(told["attempts"].values()) >= 12
    assert {row["name"] for row in told["recovered"]} == {"E", "A", "B", "alpha", "beta"}


def test_repeats_tell_how_good_the_answer_would_be_and_write_nothing(campaign, capsys):
    before = sorted(campaign.rglob("*"))
    assert main(["rehearse", "campaign.yaml", "--repeat", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["repeats"] == 3
    assert {"bias", "sd", "told_se", "coverage", "promised_se"} <= set(told["figures"]["params"])
    assert sorted(campaign.rglob("*")) == before


def test_all_that_is_wrong_with_a_call_is_told_at_once(campaign, capsys):
    assert main(["rehearse", "campaign.yaml", "--law", "no", "--speed", "-1", "--seed", "-2"]) == 2
    told = capsys.readouterr().err
    assert "3 faults" in told and "--law" in told and "--speed" in told and "--seed" in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--law", "chinchila"], "did you mean 'chinchilla'?"),
        (["--speed", "-1"], "--speed: -1 is not above 0"),
        (["--repeat", "1"], "--repeat: 1 is less than 2"),
        (["--repeat", "5", "--out", "x"], "--out: goes with no --repeat"),
        (["--noise", "2"], "--noise: 2 is not in 0 to 1"),
        (["--waves", "0"], "--waves: 0 is not between 1 and"),
        (["--follow", "nosuch"], "--follow: there is no run 'nosuch'"),
    ],
)
def test_a_wrong_call_says_what_is_wrong_before_anything_is_written(
    campaign, capsys, options, words
):
    before = sorted(campaign.rglob("*"))
    arguments = [
        o for o in ("--instant",) if "--speed" not in options and "--repeat" not in options
    ]
    assert main(["rehearse", "campaign.yaml", *arguments, *options]) == 2
    assert words in capsys.readouterr().err
    assert sorted(campaign.rglob("*")) == before


def test_ctrl_c_leaves_in_order(campaign):
    command = [sys.executable, "-u", "-m", "llem", "rehearse", "campaign.yaml", "--speed", "10"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"Attempt 0" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in told
