"""The data of a run: a token file, or a mixture of several, and which part of each is held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd, lcm
from typing import Any

STREAM, DOCUMENTS = "stream", "documents"
PACKINGS = (STREAM, DOCUMENTS)
# The order of a mixture repeats after as many windows as its weights sum to, and is kept in
# memory for one such period.
MOST_WEIGHT = 1 << 16

Weight = int | float | Fraction


@dataclass(frozen=True, kw_only=True)
class TokenData:
    """A memory-mapped file of token ids and which part of it is held out.

    `fingerprint` identifies the content (the path does not). The last `evaluation_tokens` of the
    file are held out for evaluation; all before them can be trained on. `packing` is how windows
    are cut: from the `stream` of ids, or so that `documents` stay whole.

    Of a mixture (`mixture_of`) `path` and `dtype` are empty, `tokens` and `evaluation_tokens` are
    the sums over its parts, and the fingerprint is of all parts with their weights.
    """

    path: str
    dtype: str
    tokens: int
    evaluation_tokens: int
    fingerprint: str
    packing: str = STREAM
    mixture: tuple[Part, ...] = ()

    @property
    def training_tokens(self) -> int:
        return self.tokens - self.evaluation_tokens

    @property
    def parts(self) -> tuple[Part, ...]:
        """The files that are read: those of the mixture, or this one alone."""
        return self.mixture or (Part(data=self, weight=1),)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return tuple(part.data.path for part in self.parts)

    @property
    def once_tokens(self) -> int:
        """As many tokens can be trained on before one of them is read again."""
        whole = sum(part.weight for part in self.parts)
        return min(part.data.training_tokens * whole // part.weight for part in self.parts)

    def different_tokens(self, tokens: int) -> int:
        """How many different tokens a training on `tokens` reads."""
        whole = sum(part.weight for part in self.parts)
        return sum(
            min(tokens * part.weight // whole, part.data.training_tokens) for part in self.parts
        )

    def epochs(self, tokens: int) -> float:
        """How often a training on `tokens` reads a token that it reads, on average."""
        return 1.0 if tokens <= self.once_tokens else tokens / self.different_tokens(tokens)

    def holding_out_at_most(self, tokens: int) -> TokenData:
        """The same data with no more than so many tokens of each file held out."""
        if self.mixture:
            return mixture_of(
                (_holding_out(part.data, tokens), part.weight) for part in self.mixture
            )
        return _holding_out(self, tokens)

    def identity(self) -> dict[str, Any]:
        """What of the data changes a run's result. Defaults are left out: a new choice must not
        rename the runs of those who did not make it."""
        found: dict[str, Any] = {
            "dtype": self.dtype,
            "evaluation_tokens": self.evaluation_tokens,
            "fingerprint": self.fingerprint,
            "tokens": self.tokens,
        }
        return found if self.packing == STREAM else {**found, "packing": self.packing}

    def to_dict(self) -> dict[str, Any]:
        """As `plan.json` holds it, without what is at its default."""
        found: dict[str, Any] = {"path": self.path, **self.identity()}
        if self.mixture:
            found["mixture"] = [
                {"weight": part.weight, "data": part.data.to_dict()} for part in self.mixture
            ]
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TokenData:
        """Inverse of `to_dict`."""
        parts = tuple(
            Part(data=cls.from_dict(part["data"]), weight=part["weight"])
            for part in values.get("mixture", ())
        )
        return cls(**{**values, "mixture": parts})


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file of a mixture; of the sum of all weights so many windows are its own."""

    data: TokenData
    weight: int


def mixture_of(parts: Iterable[tuple[TokenData, Weight]]) -> TokenData:
    """Files with their weights as one. Raises ValueError where the weights are too fine.

    Weights are taken as the decimals that they are written as: .7 and .3 are 7 and 3.
    """
    parts = list(parts)
    weights = whole_weights([weight for _, weight in parts])
    mixture = tuple(
        Part(data=data, weight=weight) for (data, _), weight in zip(parts, weights, strict=True)
    )
    content = [[part.weight, part.data.identity()] for part in mixture]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return TokenData(
        path="",
        dtype="",
        tokens=sum(part.data.tokens for part in mixture),
        evaluation_tokens=sum(part.data.evaluation_tokens for part in mixture),
        fingerprint=hashlib.blake2b(text.encode(), digest_size=16).hexdigest(),
        packing=mixture[0].data.packing,
        mixture=mixture,
    )


def whole_weights(weights: Sequence[Weight]) -> list[int]:
    """The smallest whole numbers in the ratio of `weights`. Raises ValueError."""
    exact = [Fraction(str(weight)) for weight in weights]
    if min(exact) <= 0:
        raise ValueError("weights must be above zero")
    common = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    shared = gcd(*whole)
    whole = [weight // shared for weight in whole]
    if sum(whole) > MOST_WEIGHT:
        ratio = ":".join(map(str, whole))
        raise ValueError(
            f"the weights are {ratio} in whole numbers, whose sum {sum(whole)} is above "
            f"{MOST_WEIGHT}: round them"
        )
    return whole


def _holding_out(data: TokenData, most: int) -> TokenData:
    return replace(data, evaluation_tokens=min(data.evaluation_tokens, most))
