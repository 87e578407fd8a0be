"""A data set of samples, of any kind, as a run's specification names it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

# What stands in the place of a module in the name of an object that has no name to import.
IN_SESSION = "in-session"


@dataclass(frozen=True, kw_only=True)
class SampleData:
    """Samples that are read by number, some of which are held out.

    `dataset` and `evaluation` (empty where it is a part of `dataset`) name them: "module:object",
    or a folder of plain arrays. `fingerprint` identifies the content, the names do not. `units` is
    how much of D a sample is: its tokens where it has them (`unit` "token"), else 1. `split` says
    which are held out: "random" ones, those at the "end", or an evaluation set of its "own".
    `draws`: reading a sample draws random numbers.
    """

    dataset: str
    samples: int
    evaluation_samples: int
    fingerprint: str
    evaluation: str = ""
    unit: Literal["sample", "token"] = "sample"
    units: int = 1
    split: Literal["random", "end", "own"] = "random"
    draws: bool = False

    @property
    def path(self) -> str:
        """Where a folder of arrays lies, relative to the campaign; "" where it is imported."""
        return "" if ":" in self.dataset else self.dataset

    @property
    def paths(self) -> tuple[str, ...]:
        """The folder, where it is one."""
        return (self.path,) if self.path else ()

    @property
    def training_tokens(self) -> int:
        """How much D there is before a sample is read twice."""
        return self.samples * self.units

    @property
    def evaluation_tokens(self) -> int:
        return self.evaluation_samples * self.units

    @property
    def tokens(self) -> int:
        return self.training_tokens + self.evaluation_tokens

    @property
    def once_tokens(self) -> int:
        """As `TokenData` calls it: `training_tokens`."""
        return self.training_tokens

    def different_tokens(self, tokens: int) -> int:
        """How much different D a training on `tokens` reads."""
        return min(tokens, self.training_tokens)

    def epochs(self, tokens: float) -> float:
        """How often D of `tokens` goes through the data, at least 1."""
        return max(1.0, tokens / self.training_tokens)

    def holding_out_at_most(self, tokens: int) -> SampleData:
        """The same data: which samples are held out is drawn among them all."""
        return self

    def identity(self) -> dict[str, Any]:
        """What of it changes a run's result: all but the names."""
        return {k: v for k, v in vars(self).items() if k not in ("dataset", "evaluation")}

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SampleData:
        return cls(**values)
