"""`llem results` on a campaign of four runs, as a user calls it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from llem.cli import main
from llem.results import Observation, RankRow, read_observations, write_observations
from llem.results.rows.phases import DeviceRow, PhaseEnergy
from llem.results.tables.observation import write_rows

NAN = math.nan


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    runs = [
        Observation(run_id=run_id, seed=seed, params=params, status=status, loss=loss,
                    tokens=1e9, energy_j=energy_j, energy_quality="counter", attempt=0)
        for run_id, seed, params, status, loss, energy_j in (
            ("3f2a00", 1, 1_000_000, "completed", 3.0, 100.0),
            ("3f2b00", 2, 1_000_000, "completed", 3.2, 120.0),
            ("9bc000", 1, 5_000_000, "completed", 2.5, 400.0),
            ("d00d00", 2, 5_000_000, "diverged", NAN, NAN),
        )
    ]  # fmt: skip
    (tmp_path / "results").mkdir()
    (tmp_path / "plan.json").write_text(
        json.dumps({"schema": "llem-plan-1", "runs": [{"run_id": r.run_id} for r in runs]})
    )
    write_observations(runs, tmp_path / "results/observations.csv")
    phase = PhaseEnergy(run_id="3f2a00", attempt=0, phase="train", duration_s=1.0, steps=1,
                        tokens=5, energy_j=9.0, joules_per_token=1.8, stamped_j=NAN,
                        stamped_sampled_j=NAN, energy_quality="counter")  # fmt: skip
    write_rows(PhaseEnergy, [phase], tmp_path / "results/phases.csv")
    write_rows(DeviceRow, [], tmp_path / "results/devices.csv")
    write_rows(RankRow, [], tmp_path / "results/ranks.csv")
    attempt = tmp_path / "runs/3f2a00/attempt-0"
    attempt.mkdir(parents=True)
    (attempt / "end.json").write_text(json.dumps({"run_id": "3f2a00", "status": "completed"}))
    return tmp_path


def call(capsys, *words) -> tuple[int, str, str]:
    status = main(["results", *map(str, words)])
    out = capsys.readouterr()
    return status, out.out, out.err


def test_list_filters_sorts_and_chooses_columns(campaign, capsys):
    status, out, _ = call(capsys, "list", campaign, "--where", "loss<3.1 and status=completed",
                          "--sort", "loss:desc", "--columns", "run_id,loss", "--json")  # fmt: skip
    assert status == 0
    assert json.loads(out) == [{"run_id": "3f2a00", "loss": 3.0}, {"run_id": "9bc000", "loss": 2.5}]


def test_a_list_is_a_table_in_which_the_unknown_is_a_dash(campaign, capsys):
    status, out, _ = call(capsys, "list", campaign)
    head, *rows = out.splitlines()
    assert status == 0 and head.split()[:3] == ["run", "status", "params"]
    assert len(rows) == 4 and rows[3].split()[:3] == ["d00d00", "diverged", "5"]
    assert "nan" not in out and "–" in rows[3]


def test_joules_that_a_model_estimated_are_told_below_the_table(campaign, capsys):
    """The table has no room for a column that says so."""
    assert "estimated" not in call(capsys, "list", campaign)[2]
    file = campaign / "results/observations.csv"
    rows = read_observations(file)
    write_observations([replace(row, energy_quality="model") for row in rows], file)
    told = "the energy of every run is estimated by a model, not measured"
    assert told in call(capsys, "list", campaign)[2]
    write_observations([rows[0], *(replace(r, energy_quality="model") for r in rows[1:])], file)
    assert "the energy of 2 of 3 runs is estimated" in call(capsys, "list", campaign)[2]
    assert "estimated" not in call(capsys, "list", campaign, "--columns", "run_id")[2]


def test_groups(campaign, capsys):
    _, out, _ = call(capsys, "list", campaign, "--group-by", "params", "--json")
    one, five = json.loads(out)
    assert (one["params"], one["runs"], one["energy_j"]) == (1_000_000, 2, 220.0)
    assert (five["without_energy"], five["loss"]) == (1, 2.5)


def test_show_tells_of_attempts_phases_and_files(campaign, capsys):
    status, out, _ = call(capsys, "show", campaign, "3f2a", "--json")
    found = json.loads(out)
    assert status == 0 and found["run"]["loss"] == 3.0
    assert found["attempts"][0]["status"] == "completed" and found["attempts"][0]["files"] == []
    assert found["phases"][0]["energy_j"] == 9.0 and found["devices"] == []
    assert call(capsys, "show", campaign, "9b")[0] == 0


def test_compare_tells_what_differs_with_ratios(campaign, capsys):
    _, out, _ = call(capsys, "compare", campaign, "3f2a", "9bc", "--json")
    by_field = {line["field"]: line for line in json.loads(out)}
    assert by_field["energy_j"]["values"] == [100.0, 400.0]
    assert by_field["energy_j"]["ratios"] == [4.0]
    assert "tokens" not in by_field and "status" not in by_field
    status, out, _ = call(capsys, "compare", campaign, "3f2a", "9bc", "d00d")
    assert status == 0 and "4.00x" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "3f2"), "begins the names of 2 runs (3f2a00, 3f2b00)"),
        (("show", "3f2a0x"), "did you mean '3f2a00'?"),
        (("compare", "3f2a"), "two runs or more"),
        (("list", "--where", "los>1"), "did you mean 'loss'?"),
        (("list", "--columns", "losses"), "did you mean 'loss'?"),
        (("list", "--sort", "energy:desc"), "there is no field 'energy'"),
        (("list", "--group-by", "param"), "did you mean 'params'?"),
        (("export", "--table", "phase"), "did you mean 'phases'?"),
        (("export", "--format", "hdf5", "--out", "-"), "name a file"),
    ],
)
def test_wrong_calls_are_told_with_a_guess(campaign, capsys, words, said):
    status, out, err = call(capsys, words[0], campaign, *words[1:])
    assert (status, out) == (2, "") and said in err


def test_export_by_format_by_name_and_to_standard_output(campaign, capsys, tmp_path):
    status, out, _ = call(capsys, "export", campaign, "--out", "-", "--where", "seed=2",
                          "--columns", "run_id,loss")  # fmt: skip
    assert (status, out) == (0, "run_id,loss\n3f2b00,3.2\nd00d00,\n")
    assert call(capsys, "export", campaign, "--out", tmp_path / "x.json")[0] == 0
    assert len(json.loads((tmp_path / "x.json").read_text())) == 4
    _, out, _ = call(capsys, "export", campaign, "--table", "phases", "--format", "hdf5")
    assert out == f"1 rows: {campaign}/results/export/phases.h5\n"


def test_llem_s_own_tables_are_not_overwritten(campaign, capsys):
    before = (campaign / "results/observations.csv").read_bytes()
    status, _, err = call(capsys, "export", campaign, "--where", "seed=1",
                          "--out", campaign / "results/observations.csv")  # fmt: skip
    assert status == 2 and "llem's own table" in err
    assert (campaign / "results/observations.csv").read_bytes() == before


def test_a_rehearsal_says_so_in_every_output(campaign, capsys):
    plan = json.loads((campaign / "plan.json").read_text())
    (campaign / "plan.json").write_text(json.dumps({**plan, "rehearsal": {"law": "1.7 + 400/N"}}))
    for words in (("list",), ("list", "--columns", "run_id"), ("list", "--group-by", "seed"),
                  ("show", "9bc"), ("compare", "9bc", "3f2a"),
                  ("export", "--out", "-", "--columns", "run_id"),
                  ("export", "--out", "-", "--table", "phases")):  # fmt: skip
        for more in ((), ("--json",)) if words[0] != "export" else ((),):
            status, out, _ = call(capsys, words[0], campaign, *words[1:], *more)
            assert status == 0 and "1.7 + 400/N" in out, (words, more)


def test_newer_records_are_told(campaign, capsys):
    import os
    import time

    later = time.time() + 60
    os.utime(campaign / "runs/3f2a00/attempt-0/end.json", (later, later))
    _, out, err = call(capsys, "list", campaign, "--json")
    assert "1 run(s) have newer records" in err and len(json.loads(out)) == 4


def test_a_folder_that_is_no_campaign_is_told(tmp_path, capsys):
    status, _, err = call(capsys, "list", tmp_path / "nothing")
    assert status == 2 and "nothing" in err
