"""`run_experiment` and `run_study`: what is refused, and a study from the call to its answer.

What serves here is a server that knows no model (tests/unit/serving/standin.py): planning, ranks,
records, aggregation and intervals are the real ones.
"""

import json
import math
import sys
from pathlib import Path

import pytest

import llem
from llem.errors import InputError, LlemError

STANDIN = Path(__file__).parents[1] / "serving" / "standin.py"
TINY = {
    "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 176, "vocab_size": 256, "max_position_embeddings": 512,
}  # fmt: skip
PROMPTS = {"synthetic": {"input_tokens": 8, "output_tokens": 5, "count": 4}}


def standin(**words):
    more = " ".join(f"--{name} {value}" for name, value in words.items())
    return f"{sys.executable} {STANDIN} {{port}} {more}".strip()


def faults_of(call, **keys):
    with pytest.raises(InputError) as caught:
        call(**keys)
    return {fault.path: f"{fault.message} ({fault.hint})" for fault in caught.value.faults}


# What is refused


def test_every_fault_of_a_call_is_told_at_once_with_what_was_meant(tmp_path):
    found = faults_of(
        llem.run_study, out=tmp_path / "s", model=TINY, optoins={}, batch_size=4, dtype="bf16",
        executor="slrum", prompts={"synthetic": {"input_tokens": 3, "count": 1}},
        sweep={"grid": {"options.batchsize": [1, 2]}},
    )  # fmt: skip
    assert set(found) == {"optoins", "batch_size", "dtype", "executor",
                          "prompts.synthetic.output_tokens",
                          "sweep.grid.options.batchsize"}  # fmt: skip
    assert "did you mean 'options'?" in found["optoins"]
    assert "goes into `options`" in found["batch_size"]
    assert "`precision`" in found["dtype"]
    assert "did you mean 'slurm'?" in found["executor"]
    assert "did you mean 'batch_size'?" in found["sweep.grid.options.batchsize"]
    assert not (tmp_path / "s").exists()


def test_ctrl_c_while_jobs_are_waited_for_says_how_to_go_on(tmp_path, monkeypatch):
    def stopped(*_args, **_words):
        raise KeyboardInterrupt

    monkeypatch.setattr("llem.pipeline.campaigns.submit_and_wait", stopped)
    site = {"name": "there", "gpu": {"name": "cpu"}, "gpu_request": "none"}
    with pytest.raises(
        KeyboardInterrupt, match=r"goes on: the same call .* `llem cancel .*s` ends"
    ):
        llem.run_study(out=tmp_path / "s", model=TINY, prompts=PROMPTS, site=site,
                       executor="slurm", progress=False)  # fmt: skip


def test_an_unknown_keyword_is_a_type_error_as_of_any_call(tmp_path):
    with pytest.raises(TypeError, match=r"no such keyword"):
        llem.run_experiment(model=TINY, prompts=PROMPTS, out=tmp_path / "s", cycle=3)


@pytest.mark.parametrize(
    ("keys", "path", "text"),
    [
        ({"executor": "slurm"}, "site", "has no SLURM"),
        ({"site": {"base": "juwels-booster", "account": "a"}}, "site", "executor='slurm'"),
        ({"models": {"a": {"config": TINY}}}, "model", "give one of them"),
        ({"model": {"path": "nowhere"}}, "models.model.path", "cannot be read"),
        ({"model": "no/such/folder"}, "models.folder.path", "cannot be read"),
        ({"config": 3}, "config", "neither a file"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_written(tmp_path, keys, path, text):
    found = faults_of(
        llem.run_study, **{"model": TINY, "prompts": PROMPTS, "out": tmp_path / "s", **keys}
    )
    assert text in found[path]
    assert not (tmp_path / "s").exists()


def test_a_file_that_trains_is_told_so(tmp_path):
    file = tmp_path / "campaign.yaml"
    file.write_text("name: x\ntarget: 1e15 FLOP\nbudget: 1e13 FLOP\n")
    found = faults_of(llem.run_study, config=file)
    assert "run_campaign" in found["workload"]


def test_an_experiment_is_of_one_deployment(tmp_path):
    found = faults_of(
        llem.run_experiment, model=TINY, prompts=PROMPTS, out=tmp_path / "s",
        sweep={"grid": {"options.batch_size": [1, 2]}},
    )  # fmt: skip
    assert "asks for 2 deployments" in found["sweep"] and "run_study" in found["sweep"]
    assert not (tmp_path / "s").exists()


# From the call to the answer


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    file = folder / "campaign.yaml"
    values = {
        "name": "served", "workload": "inference", "models": {"tiny": {"config": TINY}},
        "backend": "openai", "options": {"command": standin()}, "prompts": PROMPTS,
        "sweep": {"grid": {"options.batch_size": [1, 4]}}, "cycles": 5,
    }  # fmt: skip
    file.write_text(json.dumps(values))
    return llem.run_study(file, cycles=2, out=folder / "out", progress=False), file


@pytest.mark.slow
def test_a_study_has_a_row_for_each_run_and_what_it_cost(study):
    result, _ = study
    assert isinstance(result, llem.StudyResult)
    # the keyword counts, not the file
    assert len(result.rows) == 4 and result.completed == 4
    assert result.varied == ["options.batch_size"]
    table = result.table()
    assert [row["options.batch_size"] for row in sorted(table, key=lambda r: r["j_per_token"])]
    for row in result.deployments:
        own = [r for r in result.rows if r["deployment_id"] == row["deployment_id"]]
        joules, tokens = (sum(r[k] for r in own) for k in ("energy_j", "tokens_out"))
        assert tokens == 2 * 4 * 5
        assert row["j_per_token"] == pytest.approx(joules / tokens)
        assert row["j_per_token_low"] < row["j_per_token"] < row["j_per_token_high"]
    assert "| options.batch_size |" in str(result).replace("deployment_id | ", "")


@pytest.mark.slow
def test_a_study_compares_draws_and_tells_its_front(study, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    result, _ = study
    [pair] = result.compare("options.batch_size")
    assert (pair["of"], pair["over"], pair["cycles"]) == ("4", "1", "paired")
    by = {row["options.batch_size"]: row for row in result.table("options.batch_size")}
    assert pair["ratio"] == pytest.approx(by[4]["j_per_token"] / by[1]["j_per_token"])
    front = result.pareto("throughput", by="options.batch_size")
    # four requests at a time come out sooner, and for less
    assert [row["options.batch_size"] for row in front] == [4]
    for suffix, head in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        [drawn] = result.plot(tmp_path / f"p.{suffix}")
        assert drawn.read_bytes().startswith(head)
    assert {p.name for p in result.plot(tmp_path / "plots")} == {"pareto.png", "pareto.svg"}
    with pytest.raises(InputError, match=r"did you mean 'options.batch_size'"):
        result.compare("options.batchsize")
    with pytest.raises(InputError, match=r"did you mean 'latency'"):
        result.pareto("latecny")


@pytest.mark.slow
def test_the_law_of_a_server_s_study_is_told_from_when_its_tokens_came(study):
    result, _ = study
    law = result.law().laws["gpu_seconds"]
    assert [part.phase for part in law.parts] == ["together"]
    assert "told from when tokens came" in law.warnings[-1]
    told = json.loads(result.to_json())
    [variant] = told["laws"]
    assert set(variant["laws"]) == {"energy_j", "gpu_seconds"} and not told["laws_reason"]
    assert len(told["runs"]) == 4 and told["schema"] == "llem-study-result-1"


@pytest.mark.slow
def test_the_same_call_serves_nothing_twice_and_a_larger_one_what_is_new(study):
    result, file = study
    first = {row["run_id"]: row for row in result.rows}
    again = llem.run_study(file, cycles=2, out=result.folder, progress=False)
    assert {row["run_id"]: row for row in again.rows} == first
    more = llem.run_study(file, cycles=3, out=result.folder, progress=False)
    assert len(more.rows) == 6 and more.completed == 6
    kept = {row["run_id"]: row for row in more.rows if row["run_id"] in first}
    assert kept == first
    assert llem.StudyResult.read(result.folder).table() == more.table()


@pytest.mark.slow
def test_an_experiment_tells_one_deployment_with_intervals(tmp_path):
    result = llem.run_experiment(
        model=TINY, backend="openai", options={"command": standin(), "batch_size": 2},
        prompts=PROMPTS, cycles=2, out=tmp_path / "e", progress=False,
    )  # fmt: skip
    assert isinstance(result, llem.ExperimentResult)
    assert len(result.rows) == 2 and result.options["batch_size"] == 2
    assert result.effective["served_model"] == "standin"
    assert result.energy_j == pytest.approx(sum(row["energy_j"] for row in result.rows))
    assert result.j_per_token.low < float(result.j_per_token) < result.j_per_token.high
    assert result.j_per_token.value == pytest.approx(result.energy_j / 40)
    # it sends a token every two milliseconds
    assert 0.002 <= result.itl_s["p50"].value <= result.itl_s["p99"].value
    assert result.ttft_s["p50"].value <= result.ttft_s["p90"].value
    told = json.loads(result.to_json(tmp_path / "e.json"))
    assert told == json.loads((tmp_path / "e.json").read_text())
    figures = {row["figure"]: row for row in told["figures"]}
    assert figures["j_per_token"]["value"] == result.j_per_token.value
    assert all(math.isfinite(end) for end in figures["j_per_token"]["interval"])


@pytest.mark.slow
def test_where_nothing_was_served_the_reason_is_raised(tmp_path):
    with pytest.raises(LlemError, match=r"none of 1 runs completed.*no such thing") as caught:
        llem.run_experiment(
            model=TINY, backend="openai", options={"command": standin(fail="'no such thing'")},
            prompts=PROMPTS, cycles=1, out=tmp_path / "e", progress=False,
        )  # fmt: skip
    assert "llem logs" in caught.value.remedy
