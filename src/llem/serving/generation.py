"""Generating with a causal model: prefill and decode, one forward pass at a time.

It is llem's own loop, not `model.generate`, so that every pass is timed and counted; the tokens
are the same. On a GPU the host reads the tokens of a pass while the next one is running already,
so that the device does not wait for it; a pass ends when its tokens have arrived.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llem.records import Phase, RequestStatus
from llem.serving.decoding import GREEDY, Decoding, greedy
from llem.serving.log import Log, Stamp
from llem.serving.replica import Replica
from llem.serving.requests import Request

# Passes that a GPU may be ahead of the tokens that the host has read.
CUDA_LAG = 1


@dataclass(kw_only=True)
class _Batch:
    """A batch under way: which rows still want tokens, and when they got them."""

    number: int
    requests: Sequence[Request]
    ends: frozenset[int]
    start_ns: int
    live: list[int] = field(default_factory=list)
    given: list[list[int]] = field(default_factory=list)
    known_ns: list[int] = field(default_factory=list)
    ended: dict[int, tuple[int, RequestStatus]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._count(list(range(len(self.requests))))
        self._due: dict[int, set[int]] = {}
        for row, request in enumerate(self.requests):
            self._due.setdefault(request.output_tokens, set()).add(row)

    @property
    def done(self) -> bool:
        return not self.live

    def _count(self, live: list[int]) -> None:
        """Take these rows for those that are live."""
        self.live = live
        lengths = [len(self.requests[row].tokens) for row in live]
        self._live_in = sum(lengths)
        self._squares_in = sum(n * n for n in lengths)

    def _attended(self, step: int, *, cached: bool) -> int:
        """Pairs in causal attention of what the live rows read in a pass."""
        live = len(self.live)
        now = self._live_in + live * step
        if step and cached:
            return now
        # of a text of n tokens n(n+1)/2
        return (self._squares_in + 2 * step * self._live_in + live * step * step + now) // 2

    def take(self, tokens: list[int], began: Stamp, log: Log, *, cached: bool) -> Stamp:
        """The tokens of the next pass have arrived."""
        step = len(self.given)
        live = len(self.live)
        read = self._live_in if step == 0 else live if cached else self._live_in + live * step
        now = log.forward(
            began,
            batch=self.number,
            phase=Phase.DECODE if step else Phase.PREFILL,
            sequences=len(self.requests),
            tokens_in=read,
            tokens_out=live,
            context=self._live_in + live * step,
            live=live,
            attended=self._attended(step, cached=cached),
        )
        self.given.append(tokens)
        self.known_ns.append(now[0])
        due = self._due.get(step + 1)
        if not due and not self.ends:
            return now
        ended = (due or set()) & set(self.live)
        stopped = {row for row in self.live if tokens[row] in self.ends}
        for row in ended | stopped:
            how = RequestStatus.STOPPED if row in stopped else RequestStatus.FINISHED
            self.ended[row] = (step + 1, how)
        if ended or stopped:
            self._count([row for row in self.live if row not in self.ended])
        return now

    def tell(self, log: Log) -> list[list[int]]:
        """Record every request; the tokens that each was given."""
        found = []
        for row, request in enumerate(self.requests):
            count, how = self.ended.get(row, (len(self.given), RequestStatus.LEFT))
            log.request(
                request,
                batch=self.number,
                tokens_out=count,
                t_start_ns=self.start_ns,
                t_first_ns=self.known_ns[0] if count else 0,
                t_last_ns=self.known_ns[count - 1] if count else 0,
                status=how,
            )
            found.append([step[row] for step in self.given[:count]])
        return found


class Generator:
    """Generates with `model`, in batches. `make_cache` gives the keys' and values' place for so
    many rows and tokens, None where none are kept; `decoding` is how tokens are chosen, and where a
    text ends.

    `forward` is what is called in its place (compiled), by default the model itself.
    """

    def __init__(
        self,
        model: Any,
        *,
        replica: Replica,
        make_cache: Callable[[int, int], Any] | None,
        decoding: Decoding = GREEDY,
        forward: Callable[..., Any] | None = None,
    ) -> None:
        self._forward = model if forward is None else forward
        self._replica = replica
        self._make_cache = make_cache
        self._decoding = decoding
        self._ends = decoding.ends
        self._device = replica.world.device
        names = set(inspect.signature(model.forward).parameters)
        self._cache_name = "cache" if "cache" in names else "past_key_values"
        self._positions = "position_ids" in names
        self._keeps = "logits_to_keep" in names

    @torch.no_grad()  # type: ignore[untyped-decorator, unused-ignore]
    def generate(self, requests: Sequence[Request], log: Log) -> list[list[int]]:
        """Serve one batch to its end, or until `log` says to leave; the tokens of each request."""
        began = log.now()
        batch = _Batch(
            number=log.next_batch(), requests=requests, ends=self._ends, start_ns=began[0]
        )
        steps = max(request.output_tokens for request in requests)
        ids, mask = self._padded(requests, steps)
        longest = ids.shape[1]
        cache = self._make_cache(len(requests), longest + steps) if self._make_cache else None
        cached = self._make_cache is not None
        choose = self._decoding.choose(self._padding(requests), prompt_tokens=longest)
        history = inputs = ids
        under_way: deque[Callable[[], list[int]]] = deque()
        leaving = False
        for step in range(steps):
            seen = mask[:, : longest + step] if mask is not None else None
            logits = self._logits(inputs, seen, cache, cached=cached)[:, -1]
            token = choose(history, logits)
            if not self._replica.alone:
                stop = token.new_full((1,), int(log.stopping()))
                token = self._replica.broadcast(torch.cat((token, stop)))
                under_way.append(self._sent(token))
                token = token[:-1]
            else:
                under_way.append(self._sent(token))
            if choose is not greedy or not cached:
                history = torch.cat((history, token[:, None]), dim=1)
            inputs = token[:, None] if cached else history
            lag = CUDA_LAG if self._device.type == "cuda" and step + 1 < steps else 0
            while len(under_way) > lag:
                tokens = under_way.popleft()()
                if self._replica.alone:
                    leaving = log.stopping()
                else:
                    leaving = bool(tokens.pop()) or leaving
                began = batch.take(tokens, began, log, cached=cached)
            if leaving or batch.done:
                break
        return batch.tell(log)

    def _padded(self, requests: Sequence[Request], steps: int) -> tuple[Tensor, Tensor | None]:
        """The prompts with padding on their left, and the mask of all that will be attended to;
        None where nothing is padded."""
        longest = max(len(request.tokens) for request in requests)
        rows = [[0] * (longest - len(r.tokens)) + list(r.tokens) for r in requests]
        ids = torch.tensor(rows, dtype=torch.long)
        lengths = {len(request.tokens) for request in requests}
        mask = None
        if len(lengths) > 1:
            mask = torch.ones((len(requests), longest + steps), dtype=torch.long)
            for row, request in enumerate(requests):
                mask[row, : longest - len(request.tokens)] = 0
            mask = mask.to(self._device, non_blocking=True)
        return ids.to(self._device, non_blocking=True), mask

    def _padding(self, requests: Sequence[Request], *, rows: int = 1) -> Tensor | None:
        """How much of each row is padding, with `rows` of them a request; None: nothing is."""
        lengths = [len(request.tokens) for request in requests for _ in range(rows)]
        longest = max(lengths)
        if min(lengths) == longest:
            return None
        return torch.tensor([longest - n for n in lengths]).to(self._device)

    def _logits(
        self, ids: Tensor, mask: Tensor | None, cache: Any, *, cached: bool, last: int = 1
    ) -> Tensor:
        """Those of the `last` places at least, (rows, places, vocabulary)."""
        more: dict[str, Any] = {self._cache_name: cache} if cached else {}
        if mask is not None and self._positions:
            # Of the padding's positions nothing is ever read.
            positions = (mask.cumsum(-1) - 1).clamp_(min=0)
            more["position_ids"] = positions[:, -ids.shape[1] :]
        if self._keeps:
            more["logits_to_keep"] = last
        found = self._forward(input_ids=ids, attention_mask=mask, use_cache=cached, **more)
        logits: Tensor = found.logits
        return logits

    def _sent(self, token: Tensor) -> Callable[[], list[int]]:
        """Begin to bring tokens to the host; what is returned waits for them."""
        if self._device.type != "cuda":
            return token.tolist  # type: ignore[no-any-return]
        here = torch.empty(token.shape, dtype=token.dtype, pin_memory=True)
        here.copy_(token, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()

        def wait() -> list[int]:
            arrived.synchronize()
            return here.tolist()  # type: ignore[no-any-return]

        return wait
