"""Prompt lookup: tokens are guessed from the text so far, and one pass checks them all.

Where the last tokens of a text stood in it before, what followed them there is the guess
(transformers' `prompt_lookup_num_tokens`, by the method of apoorvumang/prompt-lookup-decoding). The
pass tells the token after each guess: those that are what the model would have given are kept, and
so is the one after them, so that a pass gives at least one token, and the text is the one that it
would be without guessing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llem.errors import Fault, InputError
from llem.records import Phase, RequestStatus
from llem.serving.generating.generation import Generator
from llem.serving.log import Log
from llem.serving.requests import Request


class PromptLookup(Generator):
    """A `Generator` of single requests that guesses up to `guesses` tokens a pass, where the last
    `ngram` tokens or fewer are found."""

    def __init__(self, model: Any, *, guesses: int, ngram: int, **more: Any) -> None:
        super().__init__(model, **more)
        self._guesses = guesses
        self._ngram = ngram

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def generate(self, requests: Sequence[Request], log: Log) -> list[list[int]]:
        """Serve one request to its end, or until `log` says to leave; its tokens, in a list.

        Raises InputError where the model's cache cannot give back what was guessed wrongly.
        """
        [request] = requests
        began = log.now()
        start_ns = began[0]
        batch = log.next_batch()
        prompt, wanted = len(request.tokens), request.output_tokens
        assert self._make_cache is not None
        cache = self._make_cache(1, prompt + wanted)
        recording = hasattr(cache, "activate_past_recording")
        if recording:
            # A sliding window keeps what it may have to go back to.
            cache.activate_past_recording()
        text, cached, given = list(request.tokens), 0, 0
        first_ns, status = 0, RequestStatus.LEFT
        leaving = False
        while status is RequestStatus.LEFT and not leaving:
            guess = guessed(
                text, self._guesses, ngram=self._ngram, room=wanted - given, ends=self._ends
            )
            ids = torch.tensor([text[cached:] + guess], device=self._device)
            logits = self._logits(ids, None, cache, last=len(guess) + 1)
            if not cached and not getattr(cache, "is_croppable", True):
                raise _not_croppable()
            chosen = self._chosen(text, guess, logits[0, -len(guess) - 1 :], prompt=prompt)
            tokens, leaving = self._agreed(chosen, log)
            new = right(tokens, guess, ends=self._ends)
            wrong = len(guess) + 1 - len(new)
            if recording or wrong:
                cache.crop(-wrong)
            held = len(text) + len(guess)
            began = log.forward(
                began,
                batch=batch,
                phase=Phase.DECODE if cached else Phase.PREFILL,
                sequences=1,
                tokens_in=held - cached,
                tokens_out=len(new),
                context=held - wrong,
                live=1,
                attended=(held * (held + 1) - cached * (cached + 1)) // 2,
            )
            cached = held - wrong
            text += new
            given += len(new)
            first_ns = first_ns or began[0]
            if new[-1] in self._ends:
                status = RequestStatus.STOPPED
            elif given == wanted:
                status = RequestStatus.FINISHED
        log.request(
            request,
            batch=batch,
            tokens_out=given,
            t_start_ns=start_ns,
            t_first_ns=first_ns,
            t_last_ns=began[0],
            status=status,
        )
        return [text[prompt:]]

    def _chosen(self, text: list[int], guess: list[int], logits: Tensor, *, prompt: int) -> Tensor:
        """The token after the text, and after each guess as if it and those before it were right;
        `logits` are of these places, (guesses + 1, vocabulary)."""
        if self._decoding.plain:
            return logits.argmax(dim=-1)
        process = self._decoding.process(None, prompt_tokens=prompt)
        ids = torch.tensor([text + guess], device=self._device)
        scores = logits.to(copy=True, dtype=torch.float32)
        scores = torch.cat(
            [process(ids[:, : len(text) + i], scores[i : i + 1]) for i in range(len(scores))]
        )
        if not self._decoding.sample:
            return scores.argmax(dim=-1)
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1).squeeze(1)

    def _agreed(self, chosen: Tensor, log: Log) -> tuple[list[int], bool]:
        """The tokens that were chosen, and whether to leave: of the replica's first rank on all."""
        if self._replica.alone:
            tokens: list[int] = chosen.tolist()
            return tokens, log.stopping()
        stop = chosen.new_full((1,), int(log.stopping()))
        tokens = self._replica.broadcast(torch.cat((chosen, stop))).tolist()
        return tokens[:-1], bool(tokens[-1])


def guessed(
    text: Sequence[int], most: int, *, ngram: int, room: int, ends: frozenset[int]
) -> list[int]:
    """What followed the last tokens of `text` where they stood before: first looked for are the
    last `ngram`, then fewer, and taken is the first place. Up to `most` tokens, before any that
    ends a text, and one less than the `room` there is: a pass gives one more than was guessed."""
    most = min(most, room - 1)
    if most < 1:
        return []
    for size in range(min(ngram, len(text) - 1), 0, -1):
        last, at = list(text[-size:]), 0
        while (at := _index(text, last[0], at, len(text) - size)) >= 0:
            if list(text[at : at + size]) == last:
                after = list(text[at + size : at + size + most])
                return after[: next((i for i, t in enumerate(after) if t in ends), most)]
            at += 1
    return []


def _index(text: Sequence[int], token: int, start: int, stop: int) -> int:
    try:
        return text.index(token, start, stop)
    except ValueError:
        return -1


def right(chosen: Sequence[int], guess: Sequence[int], *, ends: frozenset[int]) -> list[int]:
    """Of what was chosen after the text and each guess, what really follows the text: up to the
    first guess that was wrong, or the text's end."""
    new = []
    for place, token in enumerate(chosen):
        new.append(token)
        if token in ends or place == len(guess) or token != guess[place]:
            break
    return new


def _not_croppable() -> InputError:
    text = "this model's cache keeps a state that cannot go back to before a wrong guess"
    return InputError("options", [Fault("options.prompt_lookup_tokens", text, "leave it out")])
