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

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llem.records import Phase, RequestStatus
from llem.serving.generating.decoding import GREEDY, Decoding, greedy
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
    cached: bool
    log: Log
    began: Stamp
    asks: bool
    live: list[int] = field(init=False)
    # The tokens of the next pass have arrived; whether the batch is over with them.
    take: Callable[[list[int]], bool] = field(init=False)
    given: list[list[int]] = field(default_factory=list)
    first_ns: int = 0
    # Of each row that has ended: its tokens, when it got the last, and how.
    ended: dict[int, tuple[int, int, RequestStatus]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._due: dict[int, set[int]] = {}
        for row, request in enumerate(self.requests):
            self._due.setdefault(request.output_tokens, set()).add(row)
        self._until = 1
        self._go_on(list(range(len(self.requests))), self.began)

    def _go_on(self, live: list[int], began: Stamp) -> None:
        """The passes that follow have these rows live."""
        self.live = live
        lengths = [len(self.requests[row].tokens) for row in live]
        rows, length, squares = len(live), sum(lengths), sum(n * n for n in lengths)
        given, ends, cached = self.given, self.ends, self.cached

        def counts(steps: NDArray[np.int64]) -> dict[str, NDArray[np.int64] | int]:
            context = length + rows * steps
            # Of a text of n tokens n(n + 1)/2 pairs, of its last token n.
            whole = (squares + 2 * steps * length + rows * steps * steps + context) // 2
            return {
                "phase": np.where(steps, Phase.DECODE, Phase.PREFILL),
                "tokens_in": np.where(steps, rows, length) if cached else context,
                "tokens_out": rows,
                "context": context,
                "live": rows,
                "attended": np.where(steps, context, whole) if cached else whole,
            }

        ended = self.log.passes(
            began, batch=self.number, sequences=len(self.requests), first=len(given),
            counts=counts, asks=self.asks,
        )  # fmt: skip

        def take(tokens: list[int]) -> bool:
            given.append(tokens)
            if ended() or ends or len(given) == self._until:
                return self._look(tokens)
            return False

        self.take = take

    def _look(self, tokens: list[int]) -> bool:
        """Which rows have ended with the last pass."""
        step, now = len(self.given), self.log.last
        if step == 1:
            self.first_ns = now[0]
        due = self._due.get(step, ())
        for row in self.live:
            if tokens[row] in self.ends:
                self.ended[row] = step, now[0], RequestStatus.STOPPED
            elif row in due:
                self.ended[row] = step, now[0], RequestStatus.FINISHED
        left = [row for row in self.live if row not in self.ended]
        self._until = min((n for n in self._due if n > step), default=0)
        if left and len(left) < len(self.live):
            self._go_on(left, now)
        self.live = left
        return not left or (self.asks and self.log.stop_reason is not None)

    def tell(self) -> list[list[int]]:
        """Record every request; the tokens that each was given."""
        found = []
        texts = [list(text) for text in zip(*self.given, strict=True)]
        left = len(self.given), self.log.last[0], RequestStatus.LEFT
        for row, request in enumerate(self.requests):
            count, last_ns, how = self.ended.get(row, left)
            self.log.request(
                request,
                batch=self.number,
                tokens_out=count,
                t_start_ns=self.began[0],
                t_first_ns=self.first_ns,
                t_last_ns=last_ns if count else 0,
                status=how,
            )
            found.append(texts[row][:count] if count else [])
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
        cached, alone = self._make_cache is not None, self._replica.alone
        batch = _Batch(
            number=log.next_batch(), requests=requests, ends=self._ends, cached=cached, log=log,
            began=log.now(), asks=alone,
        )  # fmt: skip
        steps = max(request.output_tokens for request in requests)
        ids, mask = self._padded(requests, steps)
        longest = ids.shape[1]
        cache = self._make_cache(len(requests), longest + steps) if self._make_cache else None
        choose = self._decoding.choose(self._padding(requests), prompt_tokens=longest)
        more = self._asked(None, cache, read=longest)
        # Bound before the passes: what the loop looks up comes from cold memory each time.
        forward = self._forward
        lag = CUDA_LAG if self._device.type == "cuda" else 0
        direct = alone and not lag
        keeps = choose is not greedy or not cached
        history = inputs = ids
        under_way: deque[Callable[[], list[int]]] = deque()
        over = False
        for step in range(steps):
            if mask is not None:
                more = self._asked(mask[:, : longest + step], cache, read=inputs.shape[1])
            token = choose(history, forward(input_ids=inputs, **more).logits[:, -1])
            if direct:
                over = batch.take(token.tolist())
            elif alone:
                under_way.append(self._sent(token))
            else:
                stop = token.new_full((1,), int(log.stopping()))
                token = self._replica.broadcast(torch.cat((token, stop)))
                under_way.append(self._sent(token))
                token = token[:-1]
            if keeps:
                history = torch.cat((history, token[:, None]), dim=1)
            inputs = token[:, None] if cached else history
            while len(under_way) > (lag if step + 1 < steps else 0):
                tokens = under_way.popleft()()
                if not alone:
                    over = bool(tokens.pop()) or over
                over = batch.take(tokens) or over
            if over:
                break
        return batch.tell()

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

    def _asked(
        self, mask: Tensor | None, cache: Any, *, read: int, last: int = 1
    ) -> dict[str, Any]:
        """What a pass that reads so many tokens of each row is asked for beside them: the logits of
        the `last` places at least."""
        cached = self._make_cache is not None
        more: dict[str, Any] = {"attention_mask": mask, "use_cache": cached}
        if cached:
            more[self._cache_name] = cache
        if mask is not None and self._positions:
            # Of the padding's positions nothing is ever read.
            more["position_ids"] = (mask.cumsum(-1) - 1).clamp_(min=0)[:, -read:]
        if self._keeps:
            more["logits_to_keep"] = last
        return more

    def _logits(self, ids: Tensor, mask: Tensor | None, cache: Any, *, last: int = 1) -> Tensor:
        """Those of the `last` places at least, (rows, places, vocabulary)."""
        more = self._asked(mask, cache, read=ids.shape[1], last=last)
        logits: Tensor = self._forward(input_ids=ids, **more).logits
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
