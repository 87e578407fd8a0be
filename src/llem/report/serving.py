"""The laws of serving and the best size over a life, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llem._numerals import (
    format_count,
    format_energy,
    format_si,
    known,
    number,
    percent,
)
from llem.report.tables import aligned
from llem.scaling.answers.cost import in_words

# Of how the law and a power law foretell what they were not fitted to.
JUDGED = (("all", "on all runs"), ("params_left_out", "on sizes left out"),
          ("batch_left_out", "on batches left out"),
          ("tokens_in_left_out", "on lengths of prompts left out"),
          ("tokens_out_left_out", "on lengths of answers left out"))  # fmt: skip
# What stands in the formulas of these laws.
LETTERS = (
    "P: forward passes, T: tokens that they read, Q: requests, S: pairs of tokens that attend to "
    "each other, X: tokens that decoding sequences hold, summed over passes. W: values of the "
    "model that a token is multiplied with, W' of them in its layers, H in its output; L: layers, "
    "w: width, K: values that the KV cache keeps of a token, C: values that the device's own cache "
    "holds. ( )+: 0 where it is negative"
)


def study_lines(fit: Mapping[str, Any]) -> Iterator[str]:
    """A study's fit.json as a person reads it."""
    for place, variant in enumerate(fit["variants"]):
        if place:
            yield ""
        yield f"{variant['name']}: {variant['runs']} runs"
        if variant["reason"]:
            yield f"  no law: {variant['reason']}"
        for law in variant["laws"].values():
            yield ""
            yield from law_lines(law)
    if any(variant["laws"] for variant in fit["variants"]):
        yield ""
        yield LETTERS
    if fit["excluded"]:
        yield ""
        yield f"left out: {len(fit['excluded'])} runs"
        for entry in fit["excluded"][:10]:
            yield f"  {entry['run_id']}: {entry['reason']}"


def law_name(law: Mapping[str, Any]) -> str:
    """`energy of a run, J`."""
    return f"{in_words(law['quantity'])} of a run, {law['unit']}"


def law_lines(law: Mapping[str, Any]) -> Iterator[str]:
    """One law: its terms with intervals, how well it foretells, what it cannot tell apart."""
    yield f"  {law_name(law)}"
    for part in law["parts"]:
        yield f"    {part['phase']} = {part['formula']}"
        rows = [[f"      {name}", *rest] for name, *rest in term_rows(law, part)]
        yield from aligned(rows, right=(1,))
    for text in law_words(law):
        yield f"    {text}"


def term_rows(law: Mapping[str, Any], part: Mapping[str, Any]) -> list[list[str]]:
    """For each term of a part its name, value, interval and what it is of."""
    unit, rows = law["unit"], []
    for term in part["terms"]:
        low, high = (number(end) for end in term["ci"])
        interval = f"{format_si(low, unit)} to {format_si(high, unit)}" if low == low else ""
        told = term["unit"].removeprefix(f"{unit} ")
        rows.append([term["name"], format_si(term["coefficient"], unit), interval, told])
    return rows


def law_words(law: Mapping[str, Any]) -> Iterator[str]:
    """How well a law foretells, and what it could not tell apart."""
    for name, words in JUDGED:
        if name in law["errors"]:
            error = law["errors"][name]
            worst = max(error.get("values", ()), key=lambda each: each["law"], default=None)
            told = (
                f", worst {percent(worst['law'])} at {format_count(worst['value'])}"
                if worst is not None
                else ""
            )
            yield (
                f"error {words}: {percent(error['law'])}{told} "
                f"(a power law of size, batch and lengths: {percent(error['power_law'])})"
            )
    if known(law["errors"].get("noise")):
        yield f"cycles of one deployment differ by {percent(law['errors']['noise'])}"
    if law["cached_values"]:
        yield f"the device's own cache (C) holds {format_count(law['cached_values'])} values"
    for part in law["parts"]:
        for entry in part["not_used"]:
            yield f"{part['phase']} without {entry['name']}: {entry['reason']}"
    for text in law["warnings"]:
        yield f"warning: {text}"


def life_lines(answers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The best size over training and serving, by variant."""
    for place, answer in enumerate(answers):
        use = answer["use"]
        if not place:
            yield (
                f"train to a loss of {answer['loss']:g} and serve "
                f"{format_count(answer['served_tokens'])} tokens:"
            )
        yield (
            f"  {answer['variant']} (batch {use['batch']:g}, {use['tokens_in']:g} tokens in, "
            f"{use['tokens_out']:g} out)"
        )
        if answer["params"] is None:
            yield f"    no answer: {'; '.join(answer['warnings'])}"
            continue
        for name, words, form in (
            ("params", "size", format_count),
            ("tokens", "trained on", format_count),
            ("training_j", "training", format_energy),
            ("serving_j", "serving", format_energy),
            ("total_j", "together", format_energy),
        ):
            low, high = answer["ci"][name]
            interval = f" ({form(low)} to {form(high)})" if low is not None else ""
            yield f"    {words:<11} {form(answer[name])}{interval}"
        alone = answer["alone"]
        yield (
            f"    trained for the least energy alone it would have {format_count(alone['params'])} "
            f"parameters and use {format_energy(alone['total_j'])}: "
            f"{percent(answer['saving'], digits=2)} is saved"
        )
        for text in answer["warnings"]:
            yield f"    warning: {text}"
