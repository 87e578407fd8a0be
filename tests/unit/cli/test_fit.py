"""`llem fit`: its options, its answers, its refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest

from llem.cli import main
from llem.cli.fit import split_laws

TRUTH = {"E": 1.5, "A": 300, "B": 500, "alpha": 0.4, "beta": 0.35}


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(3)
    rows = ["N,D,L,run_id,energy_j,duration_s"]
    for i, params in enumerate(np.geomspace(1e6, 1e8, 5)):
        for j, tokens in enumerate(np.geomspace(2e7, 2e9, 4)):
            loss = 1.5 + 300 * params**-0.4 + 500 * tokens**-0.35
            loss *= np.exp(0.002 * rng.standard_normal())
            joules = 10 + 3e-11 * params * tokens
            rows.append(f"{params},{tokens},{loss},r{i}{j},{joules},{joules / 300}")
    path = tmp_path / "x.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def told(capsys, *words):
    assert main(["fit", *words]) == 0
    return " ".join(capsys.readouterr().out.split())


def refused(capsys, *words):
    assert main(["fit", *words]) == 2
    return capsys.readouterr().err


def test_help_names_the_laws_the_columns_and_every_choice(capsys):
    text = told(capsys, "--help")
    for word in ("chinchilla_tied", "data_constrained", "huber,absolute,squares", "unique_tokens"):
        assert word in text


def test_json_is_the_content_of_fit_json_alone(capsys, table, tmp_path):
    out = tmp_path / "fit.json"
    words = ["--bootstrap", "20", "--target", "1e18", "--out", str(out), "--json"]
    assert main(["fit", table, *words]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out) == json.loads(out.read_text())
    assert json.loads(found.out)["schema"].startswith("llem.fit/")
    assert str(out) in found.err


def test_the_options_reach_the_fit(capsys, table):
    words = ["--loss", "squares", "--space", "loss", "--bootstrap", "30", "--by", "row"]
    words += ["--level", "0.9", "--seed", "4", "--exclude", "r00,r01"]
    assert main(["fit", table, *words, "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert (fit["estimator"]["loss"], fit["estimator"]["space"]) == ("squares", "loss")
    assert (fit["ci"]["level"], fit["ci"]["seed"], fit["ci"]["asked"]) == (0.9, 4, 30)
    assert "by row" in fit["ci"]["method"]
    assert [e["run_id"] for e in fit["excluded"]] == ["r00", "r01"]


def test_a_formula_is_a_law(capsys, table):
    words = ["--law", "E + A/N^alpha + B/D^alpha", "--bootstrap", "0", "--json"]
    assert main(["fit", table, *words]) == 0
    assert set(json.loads(capsys.readouterr().out)["params"]) == {"E", "A", "B", "alpha"}


def test_targets_may_be_in_energy_time_and_money(capsys, table):
    words = ["--bootstrap", "0", "--target", "1 kWh", "--target", "2 GPUh", "--target", "3 EUR"]
    text = told(capsys, table, *words, "--price-per-kwh", "0.3", "--pue", "1.2")
    assert "For 1 kWh: " in text
    assert "3.00 EUR" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--target", "3 node-h"], "node hours times the GPUs of a node"),
        (["--target", "3 EUR"], "give --price-per-kwh, --price-per-gpu-hour or both"),
        (["--target", "3 parsec"], "unknown unit"),
        (["--level", "2", "--pue", "0.5", "--seed", "-1"], "3 faults"),
        (["--declare", "nothing"], "expected section.item=text"),
        (["--declare", "training.datset=x"], "did you mean 'training.dataset'"),
        (["--exclude", "r99"], "there is no such run"),
        (["--law", "chinchila"], "did you mean 'chinchilla'"),
        (["--law", "E + A/M^alpha"], "M"),
        (["--law", "data_constrained"], "needs this column"),
        (["--compare", "chinchilla"], "two laws or more"),
        (["--unique-tokens", "many"], "--unique-tokens"),
    ],
)
def test_a_wrong_call_is_refused_with_what_to_do(capsys, table, words, says):
    text = refused(capsys, table, "--bootstrap", "0", *words)
    assert says in text
    assert "Traceback" not in text


def test_laws_are_compared_by_name_and_formula(capsys, table):
    words = ["--compare", "chinchilla,compute_power_law", "--compare", "E + A/min(N, 1e9)^alpha"]
    text = told(capsys, table, *words)
    assert "chinchilla predicts the largest compute best" in text
    assert text.count("min(N, 1e9)") == 1


def test_commas_in_parentheses_belong_to_a_formula():
    assert split_laws("a, E + A/min(N, D)^b ,c") == ["a", "E + A/min(N, D)^b", "c"]
    assert split_laws(" , ") == []


def test_a_grid_without_interior_minima_is_refused_unless_allowed(capsys, tmp_path):
    rows = ["N,D,L"]
    for flops in (1e17, 1e18, 1e19):
        for params in np.geomspace(1e9, 1e10, 5):
            tokens = flops / 6 / params
            rows.append(f"{params},{tokens},{1.5 + 300 * params**-0.4 + 500 * tokens**-0.35}")
    path = tmp_path / "edge.csv"
    path.write_text("\n".join(rows))
    text = refused(capsys, str(path), "--bootstrap", "0")
    assert "3 of 3 isoFLOP slices have no minimum inside the sizes trained" in text
    assert text.count("train smaller models at this compute") == 3
    text = told(capsys, str(path), "--bootstrap", "0", "--allow-edge-minima")
    assert text.count("has no minimum inside the sizes trained") == 3


def test_plots_lie_beside_fit_json_or_where_they_are_wanted(capsys, table, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("llem.report.page.make_plots", lambda runs, fit: seen.append(runs) or [])
    monkeypatch.chdir(tmp_path)
    words = [table, "--bootstrap", "0", "--exclude", "r00"]
    assert main(["fit", *words, "--out", "results/fit.json", "--plot"]) == 0
    assert (tmp_path / "results" / "fit-plots").is_dir()
    assert main(["fit", *words, "--plot", "elsewhere"]) == 0
    assert (tmp_path / "elsewhere").is_dir()
    assert seen[0].fitted.tolist() == [False, *[True] * 19]


def test_a_fit_loads_nothing_that_plans_draws_or_validates(table):
    code = (
        "import sys; from llem.cli import main; "
        f"main(['fit', {table!r}, '--target', '1e18', '--bootstrap', '50']); "
        "heavy = ('scipy', 'pydantic', 'matplotlib', 'rich', 'jinja2', 'h5py', 'torch', 'yaml'); "
        "print([m for m in heavy if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_great_table_is_read_in_bounded_time(tmp_path, capsys):
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(6, 9, 20_000), 10 ** rng.uniform(8, 11, 20_000)
    loss = (1.5 + 300 * n**-0.4 + 500 * d**-0.35) * np.exp(0.01 * rng.standard_normal(n.size))
    path = tmp_path / "big.csv"
    np.savetxt(path, np.stack([n, d, loss], axis=1), delimiter=",", header="N,D,L", comments="")
    assert main(["fit", str(path), "--bootstrap", "0", "--json"]) == 0
    fit = json.loads(capsys.readouterr().out)
    assert fit["n_observations"] == 20_000
    assert fit["params"] == pytest.approx(TRUTH, rel=0.05)
