"""The law that a rehearsal plants: where its losses come from, and what a fit should find again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llem.campaign import Run
from llem.errors import Fault, InputError, did_you_mean

if TYPE_CHECKING:
    from llem.scaling import Law

# Laws to plant by name: arXiv 2203.15556 fitted again (2404.10102), the same as printed, and
# 2305.16264 (exponents tied).
PUBLISHED: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "chinchilla": (
        "arXiv 2404.10102",
        {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
    ),
    "hoffmann": (
        "arXiv 2203.15556, as printed",
        {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
    ),
    "muennighoff": (
        "arXiv 2305.16264",
        {"E": 1.87, "A": 521.0, "B": 1488.0, "alpha": 0.35, "beta": 0.35},
    ),
}
DEFAULT = "chinchilla"
OPTION = "--law"


# What of a vocabulary's loss the middle of a plan has learnt to, and what no size removes, where
# the published law would be worse than knowing nothing.
MIDDLE, FLOOR = 0.55, 0.25


@dataclass(frozen=True)
class Planted:
    """A law of `llem.scaling` with the values of its parameters, and what it is called."""

    law: Law
    params: Mapping[str, float]
    name: str

    def loss(self, run: Run) -> float:
        """Nats per token at the end of a run, without noise."""
        return float(self.at(float(run.params), float(run.tokens), run=run))

    def at(self, params: Any, tokens: Any, *, run: Run | None = None) -> Any:
        """Nats per token at N parameters and D tokens, as `Law.predict`."""
        unique = None
        if "U" in self.law.variables and run is not None:
            unique = np.minimum(tokens, run.data.different_tokens(run.tokens))
        flops = None
        if "C" in self.law.variables and run is not None:
            flops = run.flops * np.asarray(tokens) / run.tokens
        return self.law.predict(self.params, params, tokens, flops=flops, unique_tokens=unique)

    @property
    def text(self) -> str:
        """`chinchilla:E=1.8172,A=482.01,...`, which `planted` reads again."""
        return f"{self.law.name}:" + ",".join(f"{k}={v:g}" for k, v in self.params.items())

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name, "law": self.law.name, "formula": self.law.formula,
            "params": dict(self.params), "text": self.text,
        }  # fmt: skip


def planted(text: str) -> Planted:
    """Read a law: a published one's name, `E=1.8,A=480,...` or `LAW:E=1.8,...`.

    Raises InputError with all that is wrong.
    """
    from llem.scaling import get_law

    words = text.strip()
    if words in PUBLISHED:
        return Planted(get_law("chinchilla"), PUBLISHED[words][1], words)
    name, colon, values = words.rpartition(":")
    if "=" not in values:
        hint = did_you_mean(words, list(PUBLISHED)) or "or E=1.8,A=480,B=2100,alpha=.35,beta=.37"
        known = ", ".join(PUBLISHED)
        raise InputError("the call", [Fault(OPTION, f"{words!r} is none of {known}", hint)])
    law = get_law(name if colon else "chinchilla")
    faults: list[Fault] = []
    params: dict[str, float] = {}
    for part in values.split(","):
        key, _, number = (word.strip() for word in part.partition("="))
        where = f"{OPTION}, {key}"
        if key not in law.parameter_names:
            hint = did_you_mean(key, list(law.parameter_names)) or ""
            faults.append(Fault(where, f"{law.name} has no such parameter", hint))
            continue
        try:
            params[key] = float(number)
        except ValueError:
            faults.append(Fault(where, f"{number!r} is no number"))
            continue
        if not (math.isfinite(params[key]) and params[key] > 0):
            faults.append(Fault(where, f"{number} is not above 0"))
    named = {fault.path.rpartition(", ")[2] for fault in faults}
    missing = [n for n in law.parameter_names if n not in params and n not in named]
    if missing:
        faults.append(Fault(OPTION, f"{law.name} also needs {', '.join(missing)}"))
    if faults:
        raise InputError("the call", faults)
    return Planted(law, {n: params[n] for n in law.parameter_names}, name or "given")


def planted_for(runs: Sequence[Run]) -> Planted:
    """The law to plant where none was asked for: Chinchilla's where it makes sense for these runs.

    Below some millions of parameters it gives more than the loss of guessing. Then its exponents
    are kept, and its amplitudes chosen so that the middle of the runs is the best size for its
    compute and has a loss that such models reach.
    """
    chinchilla = planted(DEFAULT)
    guessing = math.log(max(2, int(getattr(runs[0].model, "vocabulary", 0) or 2)))
    if max(chinchilla.loss(run) for run in runs) < guessing:
        return chinchilla
    log_n = math.fsum(math.log(run.params) for run in runs) / len(runs)
    log_d = math.fsum(math.log(run.tokens) for run in runs) / len(runs)
    alpha, beta = chinchilla.params["alpha"], chinchilla.params["beta"]
    reducible = (MIDDLE - FLOOR) * guessing
    # alpha A N^-alpha = beta B D^-beta at the best size.
    of_size = reducible * beta / (alpha + beta)
    values = {
        "E": FLOOR * guessing, "A": of_size * math.exp(alpha * log_n),
        "B": (reducible - of_size) * math.exp(beta * log_d), "alpha": alpha, "beta": beta,
    }  # fmt: skip
    rounded = {name: float(f"{value:.4g}") for name, value in values.items()}
    return Planted(chinchilla.law, rounded, "small")
