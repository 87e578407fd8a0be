"""How the next token is chosen from the logits: transformers' own processors, in the order in
which its `generate` has them.

Padding is no part of a text: it is neither penalised nor a part of an n-gram.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

# The next token of each row: from all ids so far and the logits of the last, (rows, vocabulary).
Choose = Callable[[Tensor, Tensor], Tensor]
# An id that no token has.
NO_TOKEN = -1
# What a processor of transformers does: scores of (rows, vocabulary) to others.
Process = Callable[[Tensor, Tensor], Tensor]


def greedy(ids: Tensor, logits: Tensor) -> Tensor:
    """The likeliest token; of several the first, as `generate` takes it."""
    return logits.argmax(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """The options that choose tokens; `ends` are the ids that end a text, none where each goes on
    to the length that is asked for."""

    sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float | None = None
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int | None = None
    min_tokens: int | None = None
    ends: frozenset[int] = frozenset()

    @classmethod
    def of(cls, options: Mapping[str, Any], *, ends: frozenset[int] = frozenset()) -> Self:
        """From the effective options of the backend; what is not there has its default."""
        names = [name for name in cls.__dataclass_fields__ if name != "ends"]
        return cls(**{n: options[n] for n in names if options.get(n) is not None}, ends=ends)

    @property
    def plain(self) -> bool:
        """Whether the likeliest token of the logits as they are is taken."""
        processed = self.repetition_penalty != 1.0 or self.no_repeat_ngram or self._held_back
        return not self.sample and not processed

    @property
    def _held_back(self) -> bool:
        return bool(self.min_tokens and self.ends)

    def choose(self, padded: Tensor | None, *, prompt_tokens: int) -> Choose:
        """What chooses in one batch: see `process`."""
        if self.plain:
            return greedy
        process = self.process(padded, prompt_tokens=prompt_tokens)
        sample = self.sample

        def choose(ids: Tensor, logits: Tensor) -> Tensor:
            scores = process(ids, logits.to(copy=True, dtype=torch.float32))
            if not sample:
                return scores.argmax(dim=-1)
            return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)

        return choose

    def process(self, padded: Tensor | None, *, prompt_tokens: int) -> Process:
        """The processors of one batch, whose prompts are `prompt_tokens` long with their padding,
        and have so much of it on their left (`padded`, of each row; None: nothing)."""
        steps = [*self._penalties(padded, prompt_tokens), *(self._warpers() if self.sample else [])]

        def process(ids: Tensor, scores: Tensor) -> Tensor:
            for step in steps:
                scores = step(ids, scores)
            return scores

        return process

    def _penalties(self, padded: Tensor | None, prompt_tokens: int) -> list[Process]:
        from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

        steps: list[Process] = []
        if self.repetition_penalty != 1.0:
            # What is there twice is penalised once: padding becomes a token of the text's own.
            penalty = RepetitionPenaltyLogitsProcessor(penalty=self.repetition_penalty)
            steps.append(_of_texts(penalty, padded, prompt_tokens, fill=None))
        if self.no_repeat_ngram:
            repeated = NoRepeatNGramLogitsProcessor(self.no_repeat_ngram)
            # Of single tokens it forbids each that is there: there, no other may be.
            fill = NO_TOKEN if self.no_repeat_ngram > 1 else None
            steps.append(_of_texts(repeated, padded, prompt_tokens, fill=fill))
        if self._held_back:
            steps.append(self._hold_back(prompt_tokens))
        return steps

    def _hold_back(self, prompt_tokens: int) -> Process:
        """No text ends before it has `min_tokens`."""
        until, ends = prompt_tokens + (self.min_tokens or 0), sorted(self.ends)

        def hold_back(ids: Tensor, scores: Tensor) -> Tensor:
            if ids.shape[1] >= until:
                return scores
            scores = scores.clone()
            scores[:, ends] = -torch.inf
            return scores

        return hold_back

    def _warpers(self) -> list[Process]:
        from transformers import (
            MinPLogitsWarper,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
            TypicalLogitsWarper,
        )

        steps: list[Process] = []
        if self.temperature != 1.0:
            steps.append(TemperatureLogitsWarper(self.temperature))
        if self.top_k:
            steps.append(TopKLogitsWarper(top_k=self.top_k))
        if self.top_p < 1.0:
            steps.append(TopPLogitsWarper(top_p=self.top_p))
        if self.min_p is not None:
            steps.append(MinPLogitsWarper(min_p=self.min_p))
        if self.typical_p < 1.0:
            steps.append(TypicalLogitsWarper(mass=self.typical_p))
        return steps


GREEDY = Decoding()


def _of_texts(
    process: Process, padded: Tensor | None, prompt_tokens: int, *, fill: int | None
) -> Process:
    """The same, of ids whose padding is `fill`; None: the last token of the row's prompt."""
    if padded is None:
        return process

    def of_texts(ids: Tensor, scores: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        instead = ids[:, prompt_tokens - 1, None] if fill is None else ids.new_full((1,), fill)
        return process(torch.where(places < padded[:, None], instead, ids), scores)

    return of_texts
