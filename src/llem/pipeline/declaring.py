"""What a plan knows of the reporting checklist, so that nobody has to declare it by hand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llem._numerals import brief, format_times

Values = Mapping[str, Any]
# What a recipe's rule says of each run.
RULED = ("batch_tokens", "learning_rate")


def declared_of(plan: Values) -> dict[str, str]:
    """Answers by the names of `llem.scaling.checklist`, from the content of a training's plan.json.

    What a plan cannot tell (what the law takes for granted, where models are) is left out.
    """
    return dict(_answers(plan, plan.get("runs") or ()))


def _answers(plan: Values, runs: Sequence[Values]) -> Iterator[tuple[str, str]]:
    if not runs:
        return
    campaign, first = plan["campaign"], runs[0]
    model, recipe = first.get("model") or {}, first.get("recipe") or {}
    llama = model.get("family") == "llama"
    tied = "tied to the output layer" if model.get("tied_embeddings") else "and the output layer"
    yield (
        "training.params_counted",
        f"N is total: embeddings, {tied}, included"
        if llama
        else "N is what the model's num_params() tells, else its trainable parameters",
    )
    yield "training.dataset", _dataset(campaign.get("data") or {}, first.get("data") or {})
    yield "training.repeated", _repeated(runs)
    yield "training.architecture", _architecture(campaign.get("model") or {}, runs, llama=llama)
    if recipe:
        batches, rates = (_ends(r["recipe"][k] for r in runs) for k in RULED)
        unit = "tokens" if llama else "samples or tokens"
        text = (
            f"{recipe['optimiser']}, betas {recipe['beta1']:g} and {recipe['beta2']:g}, weight "
            f"decay {recipe['weight_decay']:g}, gradients clipped at {recipe['clip_norm']:g}; "
            f"learning rate {rates} and batch {batches} {unit} by the rule {recipe['rule']}; "
            f"{recipe['precision']}"
        )
        yield "training.hyperparameters", text
        warm = _ends(r["recipe"]["warmup_steps"] / r["steps"] for r in runs)
        text = f"{recipe['schedule']}, warm-up over {warm} of the steps"
        if recipe["schedule"] == "wsd":
            text += f", decay over the last {recipe['decay_fraction']:g}"
        yield "training.schedule", f"{text}; each run decays to its own end"
    yield "training.seeds", f"{campaign.get('seeds', 1)} of each size and data in the first wave"
    yield "data.metric", _metric(first.get("data") or {}, llama=llama)


def _dataset(asked: Values, data: Values) -> str:
    parts = data.get("parts") or [data]
    names = [Path(str((p.get("data") or p).get("path") or "")).name for p in parts]
    told = " + ".join(name for name in names if name)
    told = told or str(asked.get("dataset") or asked.get("builtin") or "given in Python")
    prints = [str((p.get("data") or p).get("fingerprint") or "") for p in parts]
    known = ", ".join(p for p in prints if p)
    return f"{told} (fingerprint {known})" if known else told


def _repeated(runs: Sequence[Values]) -> str:
    over = [float(run.get("epochs") or 1.0) for run in runs]
    again = sum(epochs > 1 for epochs in over)
    if not again:
        return f"no: each of the {len(runs)} runs reads a part of one epoch"
    return (
        f"{again} of {len(runs)} runs read some of it again, in up to "
        f"{format_times(max(over))} epochs"
    )


def _architecture(asked: Values, runs: Sequence[Values], *, llama: bool) -> str:
    if not llama:
        return f"{asked.get('class') or asked.get('family')}, sized by {asked.get('size')}"
    shapes = [run["model"] for run in runs]
    return (
        f"llama: {_ends(m['layers'] for m in shapes)} layers, width "
        f"{_ends(m['width'] for m in shapes)}, {_ends(m['heads'] for m in shapes)} heads, MLP "
        f"{_ends(m['mlp_width'] for m in shapes)}; vocabulary {shapes[0]['vocabulary']}, context "
        f"{shapes[0]['context']}"
    )


def _metric(data: Values, *, llama: bool) -> str:
    if llama:
        held_out = data.get("evaluation_tokens")
        much = f"{held_out} tokens" if held_out else "tokens"
        return f"held-out loss after the last step: mean cross-entropy over {much} of the same data"
    return "held-out loss after the last step: the mean of the loss given, over held-out samples"


def _ends(values: Any) -> str:
    """`0.0021 to 0.011`, or the one value."""
    found = sorted(float(value) for value in values)
    low, high = brief(found[0]), brief(found[-1])
    return low if low == high else f"{low} to {high}"
