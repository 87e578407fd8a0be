"""Beam search: each request's likeliest text, as transformers' `generate` finds it.

Of each request several texts are followed at a time, each a row of the batch, from its prefill on.
A pass gives every running text its likeliest next tokens; the best of all of a request's are
followed further, and what has ended is kept with its score, the sum of its tokens' log
probabilities over its length to the power of `length_penalty`.

Which text it will be is not known before a request's search is over: all of its tokens are known
with the pass that ended it, and until then none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llem.records import Phase, RequestStatus
from llem.serving.generating.generation import Generator
from llem.serving.log import Log, Stamp
from llem.serving.requests import Request

# What stands for "never": far below any score, and added to scores that shall not win.
NEVER = -1.0e9


@dataclass(frozen=True, kw_only=True)
class Beams:
    """How many texts are followed for each request, and when its search is over: with
    `early_stopping` True as soon as as many have ended, False when no running text would win if it
    ended now, "never" when none can win any more."""

    count: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False


class BeamSearch(Generator):
    """A `Generator` that searches with `beams`."""

    def __init__(self, model: Any, *, beams: Beams, **more: Any) -> None:
        super().__init__(model, **more)
        self._beams = beams

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def generate(self, requests: Sequence[Request], log: Log) -> list[list[int]]:
        """Serve one batch to its end, or until `log` says to leave; the tokens of each request."""
        began = log.now()
        batch = _Batch(log.next_batch(), requests, began, rows=self._beams.count)
        steps = max(request.output_tokens for request in requests)
        count = self._beams.count
        ids, mask = self._padded([r for r in requests for _ in range(count)], steps)
        longest = ids.shape[1]
        cache = self._make_cache(len(ids), longest + steps) if self._make_cache else None
        process = self._decoding.process(self._padding(requests, rows=count), prompt_tokens=longest)
        search = _Search(
            self._beams, requests=requests, steps=steps, ends=self._ends, device=self._device
        )
        inputs = ids
        for step in range(steps):
            seen = mask[:, : longest + step] if mask is not None else None
            logits = self._logits(inputs, seen, cache)[:, -1]
            # In fp32, and processed as logarithms of probabilities, as `generate` does.
            scores = logits.to(copy=True, dtype=torch.float32).log_softmax(dim=-1)
            rows, tokens = search.extend(process(ids, scores), step)
            over = search.over
            if not self._replica.alone:
                # Ranks of one replica must follow the same texts: those of its first.
                stop = tokens.new_full((1,), int(log.stopping()))
                told = self._replica.broadcast(torch.cat((rows, tokens, over.long(), stop)))
                rows, tokens, over, stop = told.split((len(rows), len(rows), len(over), 1))
                open_now, leaving = over.tolist(), bool(stop.item())
            else:
                open_now = over.tolist()
                leaving = log.stopping()
            if cache is not None:
                cache.reorder_cache(rows)
            ids = torch.cat((ids[rows], tokens[:, None]), dim=1)
            inputs = ids if cache is None else tokens[:, None]
            ended = [row for row in batch.live if open_now[row]]
            began = batch.take(ended, search, began, log, step=step, cached=cache is not None)
            if leaving or not batch.live:
                break
        return batch.tell(log, ends=self._ends)


class _Search:
    """The texts of a batch: those that run, and those that have ended, best first.

    Of n requests, b beams and s steps: `running` are the new tokens of running texts (n, b, s),
    `scores` their log probabilities (n, b); `found`, `found_scores`, `lengths` and `done` are the
    same of ended ones, with how many tokens they have and whether there is one. `improvable` (n, 1)
    says whether a running text may still win.
    """

    def __init__(
        self,
        beams: Beams,
        *,
        requests: Sequence[Request],
        steps: int,
        ends: frozenset[int],
        device: torch.device,
    ) -> None:
        n, b = len(requests), beams.count
        self._beams = beams
        self._ends = torch.tensor(sorted(ends), dtype=torch.long, device=device)
        # As many candidates that at least b of them have not ended.
        self._candidates = max(2, 1 + len(ends)) * b
        self._limits = torch.tensor([[r.output_tokens] for r in requests], device=device)
        self._first = torch.arange(n, device=device)[:, None] * b
        self._best = torch.arange(self._candidates, device=device) < b
        self._running = torch.zeros((n, b, steps), dtype=torch.long, device=device)
        # All beams begin with the same prompt: one of them counts, lest they all find the same.
        self._scores = torch.zeros((n, b), device=device)
        self._scores[:, 1:] = NEVER
        self._found = torch.zeros_like(self._running)
        self._found_scores = torch.full((n, b), NEVER, device=device)
        self._lengths = torch.zeros((n, b), dtype=torch.long, device=device)
        self._done = torch.zeros((n, b), dtype=torch.bool, device=device)
        self._improvable = torch.ones((n, 1), dtype=torch.bool, device=device)
        self._stopped = torch.zeros((n, 1), dtype=torch.bool, device=device)

    @property
    def over(self) -> Tensor:
        """Whose search is over, (n,)."""
        return (self._stopped | ~self._improvable | self._enough)[:, 0]

    @property
    def _enough(self) -> Tensor:
        full = self._done.all(dim=1, keepdim=True)
        return full if self._beams.early_stopping is True else torch.zeros_like(full)

    def extend(self, scores: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """One token more for each running text; `scores` are log probabilities, (n x b,
        vocabulary). The row that each new text goes on from, and its token, (n x b,) both."""
        n, b = self._scores.shape
        vocabulary = scores.shape[-1]
        total = scores.view(n, b, vocabulary) + self._scores[:, :, None]
        top, place = total.view(n, -1).topk(self._candidates)
        parent, token = place // vocabulary, place % vocabulary
        texts = _pick(self._running, parent)
        texts[:, :, step] = token
        ending = torch.isin(token, self._ends) | (step + 1 >= self._limits)
        self._keep(texts, top, ending, step)
        # Those that go on: the best that have not ended.
        open_scores = top + ending.float() * NEVER
        chosen = open_scores.topk(b)[1]
        self._running = _pick(texts, chosen)
        self._scores = open_scores.gather(1, chosen)
        self._judge(step)
        self._stopped |= ending.all(dim=1, keepdim=True)
        rows = (parent + self._first).gather(1, chosen)
        return rows.view(-1), token.gather(1, chosen).view(-1)

    def _keep(self, texts: Tensor, top: Tensor, ending: Tensor, step: int) -> None:
        """Put what has ended among what was found before, where it is better."""
        ended = ending & self._best
        scores = top / ((step + 1) ** self._beams.length_penalty)
        scores = scores + self._enough.float() * NEVER + (~self._improvable).float() * NEVER
        scores = scores + (~ended).float() * NEVER
        merged = torch.cat((self._found_scores, scores), dim=1)
        self._found_scores, best = merged.topk(self._found_scores.shape[1])
        self._found = _pick(torch.cat((self._found, texts), dim=1), best)
        length = torch.full_like(ended, step + 1, dtype=torch.long)
        self._lengths = torch.cat((self._lengths, length), dim=1).gather(1, best)
        self._done = torch.cat((self._done, ended), dim=1).gather(1, best)

    def _judge(self, step: int) -> None:
        """Whether the best running text could still be better than the worst found one."""
        beams = self._beams
        length: Tensor | int = step + 1
        if beams.early_stopping == "never" and beams.length_penalty > 0:
            length = self._limits
        best = self._scores[:, :1] / (length**beams.length_penalty)
        worst = self._found_scores.min(dim=1, keepdim=True)[0]
        worst = torch.where(self._done, worst, NEVER)
        self._improvable &= (best > worst).any(dim=1, keepdim=True)

    def text(self, request: int) -> list[int]:
        """The best that was found for a request; nothing before its search is over."""
        tokens: list[int] = self._found[request, 0, : int(self._lengths[request, 0])].tolist()
        return tokens


def _pick(values: Tensor, places: Tensor) -> Tensor:
    """Along the second dimension: (n, k, s) and (n, m) to (n, m, s)."""
    return values.take_along_dim(places[:, :, None], dim=1)


class _Batch:
    """A batch under way: which requests are searched for, and what was found when."""

    def __init__(
        self, number: int, requests: Sequence[Request], began: Stamp, *, rows: int
    ) -> None:
        self.live = list(range(len(requests)))
        self._number = number
        self._requests = requests
        self._start_ns = began[0]
        self._rows = rows
        self._found: dict[int, tuple[list[int], int]] = {}

    def take(
        self, ended: list[int], search: _Search, began: Stamp, log: Log, *, step: int, cached: bool
    ) -> Stamp:
        """A pass is over, and with it the search for those that `ended`."""
        lengths = [len(self._requests[row].tokens) + step for row in self.live]
        rows = self._rows * len(self.live)
        context = self._rows * sum(lengths)
        whole = not step or not cached
        pairs = sum(n * (n + 1) // 2 for n in lengths) if whole else sum(lengths)
        texts = {row: search.text(row) for row in ended}
        now = log.forward(
            began,
            batch=self._number,
            phase=Phase.DECODE if step else Phase.PREFILL,
            sequences=self._rows * len(self._requests),
            tokens_in=context if whole else rows,
            tokens_out=sum(map(len, texts.values())),
            context=context,
            live=rows,
            attended=self._rows * pairs,
        )
        self._found |= {row: (text, now[0]) for row, text in texts.items()}
        self.live = [row for row in self.live if row not in texts]
        return now

    def tell(self, log: Log, *, ends: frozenset[int]) -> list[list[int]]:
        """Record every request; the tokens that each was given."""
        told = []
        for row, request in enumerate(self._requests):
            text, known_ns = self._found.get(row, ([], 0))
            status = RequestStatus.STOPPED if text and text[-1] in ends else RequestStatus.FINISHED
            log.request(
                request,
                batch=self._number,
                tokens_out=len(text),
                t_start_ns=self._start_ns,
                t_first_ns=known_ns,
                t_last_ns=known_ns,
                status=status if row in self._found else RequestStatus.LEFT,
            )
            told.append(text)
        return told
