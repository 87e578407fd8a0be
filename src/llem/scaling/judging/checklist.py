"""What a reader must be told to judge and repeat a fit, and what this fit can tell.

After the checklist of Li, Kudugunta and Zettlemoyer, "(Mis)Fitting: A Survey of Scaling Laws"
(arXiv 2502.18969): the law, the training of its runs, the data taken from them, the fitting, and
how the result was checked. Most published fits leave several of these open.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llem._numerals import format_count, format_flops, format_interval, format_times, percent
from llem.errors import did_you_mean
from llem.scaling.errors import OptionError

NOT_KNOWN = "not known: "
ALGORITHM = (
    "damped Newton with the exact Hessian in the logarithms of the scales, from several starts"
)
Answer = Callable[[Mapping[str, Any]], str | None]


@dataclass(frozen=True)
class Item:
    """One item: `name` is section.item; `ask` says what is wanted where nothing is known.

    `answer` reads the fit; None: only the user can tell, through `declared`.
    """

    name: str
    question: str
    ask: str
    answer: Answer | None = None

    def missing(self) -> str:
        """What to pass."""
        if self.answer is None:
            return f"{NOT_KNOWN}declare {self.name}: {self.ask}"
        return f"{NOT_KNOWN}the fit holds no {self.ask}; it may be declared as {self.name}"


def checklist(
    fit: Mapping[str, Any], *, declared: Mapping[str, str] | None = None
) -> dict[str, dict[str, str]]:
    """Section -> item -> answer, or "not known: ..." with what to pass, for a fit.json's content.

    `declared` answers by name, as "training.dataset", what no fit can know, and stands beside
    what the fit itself says. OptionError for a name that is no item. Parts that are missing from
    `fit` are not known; the function never fails on them.
    """
    told = {} if declared is None else dict(declared)
    unknown = [name for name in told if name not in QUESTIONS]
    if unknown:
        name = unknown[0]
        hint = did_you_mean(name, list(QUESTIONS)) or ", ".join(QUESTIONS)
        raise OptionError("declared", name, f"the name of an item of the checklist: {hint}")
    out: dict[str, dict[str, str]] = {}
    for item in ITEMS:
        section, name = item.name.split(".")
        parts = [item.answer(fit) if item.answer else None, told.get(item.name)]
        known = "; ".join(part for part in parts if part)
        out.setdefault(section, {})[name] = known or item.missing()
    return out


def open_items(answers: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names of the items without an answer, as `declared` takes them."""
    return [
        f"{section}.{name}"
        for section, items in answers.items()
        for name, answer in items.items()
        if answer.startswith(NOT_KNOWN)
    ]


def _get(fit: Mapping[str, Any], *path: str) -> Any:
    """The value at a path of keys; None where any part is missing."""
    value: Any = fit
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _number(value: Any, form: str = ".4g") -> str | None:
    if not isinstance(value, (int, float)):
        return None
    if form.endswith("%"):
        return percent(value, places=int(form[1]))
    return re.sub(r"e\+0*", "e", format(value, form))


def _text(*path: str) -> Answer:
    def answer(fit: Mapping[str, Any]) -> str | None:
        value = _get(fit, *path)
        return str(value) if isinstance(value, str) and value else None

    return answer


def _count(key: str, noun: str) -> Answer:
    def answer(fit: Mapping[str, Any]) -> str | None:
        value = _number(_get(fit, key), "d")
        return None if value is None else f"{value} {noun}{'' if value == '1' else 's'}"

    return answer


def _range(key: str, unit: str) -> Answer:
    def answer(fit: Mapping[str, Any]) -> str | None:
        ends = _get(fit, "range", key)
        if not isinstance(ends, (list, tuple)) or len(ends) != 2 or None in ends:
            return None
        form = format_flops if unit == "FLOP" else format_count
        return f"{format_interval(ends, form)} {unit}"

    return answer


def _values(numbers: Any) -> str:
    """name = value, ... of a mapping; those without a number are called not known."""
    items = numbers.items() if isinstance(numbers, Mapping) else ()
    return ", ".join(f"{k} = {_number(v) or 'not known'}" for k, v in items)


def _parameters(fit: Mapping[str, Any]) -> str | None:
    values = _get(fit, "params")
    return f"{len(values)} fitted: {_values(values)}" if values else None


def _prediction(fit: Mapping[str, Any]) -> str | None:
    values = _get(fit, "exponents")
    return f"N* ~ C^a, D* ~ C^b: {_values(values)}" if values else None


def _compute(fit: Mapping[str, Any]) -> str | None:
    model = _get(fit, "flops_model")
    k, m = _number(_get(model or {}, "coefficient")), _number(_get(model or {}, "exponent"))
    if k is None or m is None:
        return None
    source = _get(model, "source")
    worst = _number(_get(model, "max_error"), ".2g")
    known = "" if worst is None else f", at most {worst} off in relative terms"
    return f"C = {k} N^{m} D FLOP ({source}{known})"


def _checkpoints(fit: Mapping[str, Any]) -> str | None:
    account = _get(fit, "checkpoints")
    if isinstance(account, Mapping) and "kept" in account:
        return f"{account['kept']} of {account.get('rows', 'unknown')} checkpoints used"
    rows, runs = _get(fit, "n_observations"), _get(fit, "n_runs")
    if not isinstance(rows, int) or not isinstance(runs, int):
        return None
    if rows <= runs:
        return "no intermediate checkpoints: one observation a run"
    return f"{rows} observations of {runs} runs: {rows / runs:.3g} a run on average"


def _metric_changed(fit: Mapping[str, Any]) -> str | None:
    gap = _get(fit, "checkpoints", "correction", "log_gap")
    error = _get(fit, "checkpoints", "correction", "standard_error")
    if gap is None or error is None:
        return None
    return f"un-annealed losses lowered by {gap:.3g} +- {error:.2g} in log loss"


def _excluded(fit: Mapping[str, Any]) -> str | None:
    left_out = _get(fit, "excluded")
    rows = [] if left_out is None else list(left_out)
    rows += _get(fit, "checkpoints", "dropped") or []
    if left_out is None and not rows:
        return None
    reasons: dict[str, int] = {}
    for row in rows:
        reason = str(_get(row, "reason") or "no reason given")
        reasons[reason] = reasons.get(reason, 0) + 1
    return "; ".join(f"{count} left out: {why}" for why, count in reasons.items()) or "none"


def _objective(fit: Mapping[str, Any]) -> str | None:
    judge = _get(fit, "estimator")
    if not isinstance(judge, Mapping) or not judge.get("reduction"):
        return None
    value = _number(_get(fit, "objective"), ".10g")
    tail = "" if value is None else f", at the optimum {value}"
    return f"weighted {judge['reduction']} over {judge.get('space')} residuals of the loss{tail}"


def _delta(fit: Mapping[str, Any]) -> str | None:
    judge = _get(fit, "estimator")
    if not isinstance(judge, Mapping) or "loss" not in judge:
        return None
    return _number(judge.get("delta")) or f"none: {judge['loss']} has none"


def _starts(fit: Mapping[str, Any]) -> str | None:
    tried = _number(_get(fit, "starts", "tried"), "d")
    if tried is None:
        return None
    how = _get(fit, "starts", "method")
    return f"{tried} starts tried" + (f", {how}" if how else "")


def _convergence(fit: Mapping[str, Any]) -> str | None:
    gradient = _number(_get(fit, "gradient_norm"), ".2g")
    if gradient is None:
        return None
    parts = [f"gradient norm {gradient}"]
    bend = _number(_get(fit, "smallest_eigenvalue"), ".2g")
    if bend is not None:
        parts.append(f"smallest eigenvalue of the Hessian {bend}")
    agreeing, tried = _get(fit, "starts", "agreeing"), _get(fit, "starts", "tried")
    if agreeing is not None and tried is not None:
        parts.append(f"{agreeing} of {tried} starts end there")
    return ", ".join(parts)


def _software(fit: Mapping[str, Any]) -> str | None:
    known = _get(fit, "provenance")
    if not isinstance(known, Mapping):
        return None
    versions = [f"{k} {known[k]}" for k in ("llem", "numpy", "python") if known.get(k)]
    return ", ".join(versions) or None


def _intervals(fit: Mapping[str, Any]) -> str | None:
    ci = _get(fit, "ci")
    if not isinstance(ci, Mapping):
        return None
    done = ci.get("resamples")
    if done == 0:
        return "none: the fit was asked for no resamples"
    level, method = _number(ci.get("level"), ".0%"), ci.get("method")
    if not done or not method:
        return None
    return f"{method}, {done} resamples, seed {ci.get('seed')}, {level} intervals"


def _held_out(fit: Mapping[str, Any]) -> str | None:
    error = _number(_get(fit, "held_out", "mean_abs_relative_error"), ".2%")
    if error is None:
        reason = _get(fit, "held_out", "reason")
        return f"none: {reason}" if reason else None
    rows, runs = _get(fit, "held_out", "rows"), _get(fit, "held_out", "runs")
    flops = format_flops(_get(fit, "held_out", "largest_flops"))
    return f"mean |error| {error} of the loss on {rows} rows of {runs} runs at {flops} FLOP"


def _fit_quality(fit: Mapping[str, Any]) -> str | None:
    rms = _number(_get(fit, "residuals", "rms"), ".3g")
    worst = _number(_get(fit, "residuals", "max_abs"), ".3g")
    return None if rms is None else f"residuals of log loss: rms {rms}, largest {worst}"


def _identified(fit: Mapping[str, Any]) -> str | None:
    known = _get(fit, "identified")
    if not isinstance(known, Mapping):
        return None
    loose = [name for name, good in known.items() if not good]
    return f"not identified: {', '.join(loose)}" if loose else "every parameter is identified"


def _sensitivity(fit: Mapping[str, Any]) -> str | None:
    rows = _get(fit, "sensitivity")
    values = [_get(r, "exponents", "a") for r in rows] if isinstance(rows, list) else []
    a = [v for v in values if isinstance(v, (int, float))]
    if not a:
        return None
    return f"a from {min(a):.4g} to {max(a):.4g} over {len(a)} choices of loss and delta"


def _cross_check(fit: Mapping[str, Any]) -> str | None:
    exponent = _number(_get(fit, "isoflop", "exponent"))
    levels, minima = _get(fit, "isoflop", "levels"), _get(fit, "isoflop", "minima")
    if not isinstance(levels, list) or minima is None:
        return None
    found = f"{minima} of {len(levels)} levels have an interior minimum"
    return found if exponent is None else f"isoFLOP: a = {exponent}, {found}"


def _extrapolation(fit: Mapping[str, Any]) -> str | None:
    top, optima = _range_top(fit), _get(fit, "optima")
    if top is None or not isinstance(optima, list):
        return None
    asked = [v for v in (_get(o, "flops") for o in optima) if isinstance(v, (int, float))]
    if not asked:
        return "no target beyond the data was asked for"
    return (
        f"to {format_flops(max(asked))} FLOP, {format_times(max(asked) / top)} "
        "times the largest run"
    )


def _range_top(fit: Mapping[str, Any]) -> float | None:
    ends = _get(fit, "range", "flops")
    good = isinstance(ends, (list, tuple)) and len(ends) == 2 and ends[1]
    return float(ends[1]) if good else None


# Runs of a campaign of llem could tell much of `training`; a table of numbers cannot.
ITEMS = (
    Item("law.form", "What is fitted?", "formula", _text("formula")),
    Item("law.source", "Where does the form come from?", "source", _text("source")),
    Item("law.parameters", "Which parameters are fitted?", "params", _parameters),
    Item("law.prediction", "What is it used to predict?", "exponents", _prediction),
    Item(
        "law.assumptions",
        "What does the form take for granted of how its variables hang together?",
        "what ties N, D and the loss in this campaign (one epoch, one recipe, ...)",
    ),
    Item("training.models", "How many models were trained?", "n_runs", _count("n_runs", "run")),
    Item("training.sizes", "Of which sizes?", "range.params", _range("params", "parameters")),
    Item("training.tokens", "On how much data each?", "range.tokens", _range("tokens", "tokens")),
    Item("training.compute", "With how much compute?", "range.flops", _range("flops", "FLOP")),
    Item(
        "training.params_counted",
        "How are parameters counted?",
        "whether N is total or non-embedding, and whether the output layer is in it",
    ),
    Item("training.compute_counted", "How is compute counted?", "flops_model", _compute),
    Item("training.dataset", "On which data?", "the data set, mixture and tokenizer"),
    Item("training.repeated", "Is any data repeated?", "the epochs of each run"),
    Item(
        "training.architecture",
        "Which architecture, and how does its shape grow with size?",
        "the family, and the rule for width, depth and heads",
    ),
    Item(
        "training.hyperparameters",
        "How were optimiser, learning rate and batch size chosen at each size?",
        "the optimiser, and the rule or sweep for rate and batch size",
    ),
    Item(
        "training.schedule",
        "Which learning-rate schedule, and does it end with the run?",
        "warm-up, decay, and whether each run decays to its own end",
    ),
    Item("training.seeds", "How many seeds a cell?", "the seeds of each size and data"),
    Item("training.released", "Are code and checkpoints open?", "where to get them, or none"),
    Item(
        "data.observations",
        "How many points are fitted?",
        "n_observations",
        _count("n_observations", "observation"),
    ),
    Item(
        "data.checkpoints",
        "Are intermediate checkpoints used, and which?",
        "n_observations and n_runs, or checkpoints",
        _checkpoints,
    ),
    Item(
        "data.metric",
        "Which metric, on which data?",
        "whether it is training or held-out loss, and on which set",
    ),
    Item("data.losses", "In which range?", "range.loss", _range("loss", "nats per token")),
    Item(
        "data.metric_changed",
        "Was the metric smoothed, interpolated or corrected?",
        "correction",
        _metric_changed,
    ),
    Item("data.excluded", "Which points were left out, and why?", "excluded", _excluded),
    Item(
        "data.digest",
        "Which data exactly?",
        "provenance.observations_sha256",
        _text("provenance", "observations_sha256"),
    ),
    Item("fitting.objective", "What is minimised?", "estimator", _objective),
    Item("fitting.loss", "Under which loss?", "estimator.loss", _text("estimator", "loss")),
    Item("fitting.delta", "With which delta?", "estimator.delta", _delta),
    Item(
        "fitting.algorithm",
        "By which algorithm?",
        "starts.algorithm",
        lambda fit: _text("starts", "algorithm")(fit) or (ALGORITHM if "starts" in fit else None),
    ),
    Item("fitting.starts", "From which starts?", "starts", _starts),
    Item("fitting.convergence", "Has it converged?", "gradient_norm", _convergence),
    Item("fitting.software", "With which software?", "provenance", _software),
    Item("validation.intervals", "How sure are the figures?", "ci", _intervals),
    Item("validation.held_out", "Does it predict runs it has not seen?", "held_out", _held_out),
    Item("validation.residuals", "How well does it fit?", "residuals", _fit_quality),
    Item("validation.identified", "Can the data tell the parameters?", "identified", _identified),
    Item("validation.sensitivity", "Do other choices change it?", "sensitivity", _sensitivity),
    Item("validation.cross_check", "Does another method agree?", "isoflop", _cross_check),
    Item("validation.extrapolation", "How far does it reach?", "optima", _extrapolation),
)
QUESTIONS: dict[str, str] = {item.name: item.question for item in ITEMS}
