"""The reporting checklist: every item is answered, or says what to pass."""

from __future__ import annotations

import json

import pytest

from llem.scaling.errors import OptionError
from llem.scaling.judging.checklist import ITEMS, NOT_KNOWN, QUESTIONS, checklist, open_items

FIT = {
    "formula": "L(N, D) = E + A/N^alpha + B/D^beta",
    "source": "arXiv 2203.15556",
    "estimator": {"loss": "huber", "delta": 1e-3, "space": "log", "reduction": "sum"},
    "n_observations": 40,
    "n_runs": 10,
    "params": {"E": 1.8, "A": 480.0, "B": None},
    "objective": 1.25e-3,
    "gradient_norm": 2e-14,
    "smallest_eigenvalue": 3e-5,
    "flops_model": {"coefficient": 6.0, "exponent": 1.0, "source": "6ND", "max_error": None},
    "starts": {"tried": 16, "agreeing": 15},
    "identified": {"E": True, "A": True, "B": False},
    "ci": {"level": 0.95, "method": "cluster bootstrap by run", "resamples": 4000, "seed": 7},
    "exponents": {"a": 0.51, "b": 0.49},
    "range": {"params": [1e7, 1e9], "flops": [1e17, 1e20], "loss": [2.1, 3.4]},
    "excluded": [{"row": 3, "reason": "diverged"}, {"row": 5, "reason": "diverged"}],
    "checkpoints": {
        "rows": 60,
        "kept": 40,
        "dropped": [{"run_id": "a", "row": 0, "reason": "warm-up"}],
        "correction": {"log_gap": 0.0155, "standard_error": 0.0003},
    },
    "held_out": {
        "largest_flops": 1e20,
        "rows": 5,
        "runs": 5,
        "mean_abs_relative_error": 0.0113,
        "reason": "",
    },
    "sensitivity": [{"exponents": {"a": 0.50}}, {"exponents": {"a": 0.53}}],
    "isoflop": {"levels": [{}, {}], "minima": 1, "exponent": None},
    "residuals": {"rms": 0.004, "max_abs": 0.011},
    "optima": [{"flops": 1e21}],
    "provenance": {"observations_sha256": "abc", "numpy": "2.0", "python": "3.12"},
}

ANSWERS = {
    "law.form": "L(N, D) = E + A/N^alpha + B/D^beta",
    "law.parameters": "3 fitted: E = 1.8, A = 480, B = not known",
    "law.prediction": "N* ~ C^a, D* ~ C^b: a = 0.51, b = 0.49",
    "training.models": "10 runs",
    "training.sizes": "10 M to 1 G parameters",
    "training.compute_counted": "C = 6 N^1 D FLOP (6ND)",
    "data.observations": "40 observations",
    "data.checkpoints": "40 of 60 checkpoints used",
    "data.metric_changed": "un-annealed losses lowered by 0.0155 +- 0.0003 in log loss",
    "data.excluded": "2 left out: diverged; 1 left out: warm-up",
    "data.digest": "abc",
    "fitting.objective": "weighted sum over log residuals of the loss, at the optimum 0.00125",
    "fitting.loss": "huber",
    "fitting.delta": "0.001",
    "fitting.starts": "16 starts tried",
    "fitting.convergence": "gradient norm 2e-14, smallest eigenvalue of the Hessian 3e-05, "
    "15 of 16 starts end there",
    "validation.intervals": "cluster bootstrap by run, 4000 resamples, seed 7, 95 % intervals",
    "validation.held_out": "mean |error| 1.13 % of the loss on 5 rows of 5 runs at 1e20 FLOP",
    "validation.identified": "not identified: B",
    "validation.sensitivity": "a from 0.5 to 0.53 over 2 choices",
    "validation.cross_check": "1 of 2 levels have an interior minimum",
    "validation.extrapolation": "to 1e21 FLOP, 10 times the largest run",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_a_fit_tells_what_it_knows(name: str) -> None:
    section, item = name.split(".")
    assert checklist(FIT)[section][item].startswith(ANSWERS[name])


def test_every_category_of_the_survey_is_there() -> None:
    answers = checklist(FIT)
    assert list(answers) == ["law", "training", "data", "fitting", "validation"]
    assert sum(len(items) for items in answers.values()) == len(QUESTIONS) == len(ITEMS)
    json.dumps(answers)


def test_what_no_fit_can_know_is_asked_for_by_the_name_it_is_declared_under() -> None:
    answers = checklist(FIT)
    assert answers["training"]["dataset"].startswith(f"{NOT_KNOWN}declare training.dataset: ")
    # The ranges of tokens are the one thing that this fit should hold and does not.
    unknown = set(open_items(answers))
    assert "training.tokens" in unknown
    assert "the fit holds no range.tokens" in answers["training"]["tokens"]
    assert unknown - {"training.tokens"} == {i.name for i in ITEMS if i.answer is None}


def test_declared_answers_fill_the_gaps_and_stand_beside_the_fits_own() -> None:
    told = {"training.dataset": "RefinedWeb", "fitting.loss": "as in Hoffmann et al."}
    answers = checklist(FIT, declared=told)
    assert answers["training"]["dataset"] == "RefinedWeb"
    assert answers["fitting"]["loss"] == "huber; as in Hoffmann et al."


def test_an_answer_to_no_question_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match=r"training\.dataset"):
        checklist(FIT, declared={"training.datset": "RefinedWeb"})


@pytest.mark.parametrize("part", [*FIT, "nothing"])
def test_a_missing_or_empty_part_is_not_known_and_never_an_error(part: str) -> None:
    without = {k: v for k, v in FIT.items() if k != part}
    for value in (without, without | {part: None}, without | {part: {}}, without | {part: []}):
        json.dumps(checklist(value))


def test_an_empty_fit_leaves_every_item_open() -> None:
    assert open_items(checklist({})) == list(QUESTIONS)


def test_least_squares_has_no_delta_and_no_resamples_no_intervals() -> None:
    judge = {"loss": "squares", "delta": None, "space": "log", "reduction": "sum"}
    answers = checklist({"estimator": judge, "ci": {"level": 0.95, "resamples": 0}})
    assert answers["fitting"]["delta"] == "none: squares has none"
    assert answers["validation"]["intervals"].startswith("none")
