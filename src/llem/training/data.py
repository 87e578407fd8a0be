"""Windows of a token file: which tokens each rank reads at each step, and which are held out.

Window i of the training part covers its tokens [i*T, i*T + T + 1): T inputs and, one further on,
their T targets. The global batch of step s is the places s*B .. (s+1)*B of the order, whatever
the number of ranks and micro-batches it is divided among.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.campaign import Run, TokenData
from llem.campaign.tokenfile import fingerprint
from llem.errors import Fault, InputError
from llem.training.order import WindowOrder

Tokens = NDArray[np.int64]

# Places looked up at once: the order costs some 0.2 ms a call, whether for 32 or for 2,000.
_AHEAD_WINDOWS = 2048


@dataclass(frozen=True, kw_only=True)
class Share:
    """Of a global batch, the part of one rank: `grad_accum` micro-batches of `micro_batch`."""

    rank: int
    ranks: int
    micro_batch: int
    grad_accum: int

    @property
    def batch_windows(self) -> int:
        return self.ranks * self.micro_batch * self.grad_accum

    def slices(self) -> list[slice]:
        """This rank's places within the global batch, one slice for each micro-batch."""
        wide = self.ranks * self.micro_batch
        starts = [a * wide + self.rank * self.micro_batch for a in range(self.grad_accum)]
        return [slice(start, start + self.micro_batch) for start in starts]


def share_of(run: Run, *, rank: int, ranks: int) -> Share:
    """The part of `run`'s global batch that falls to `rank`.

    Raises InputError where layout and number of ranks do not give exactly `batch_tokens`.
    """
    layout = run.layout
    share = Share(
        rank=rank, ranks=ranks, micro_batch=layout.micro_batch, grad_accum=layout.grad_accum
    )
    context = run.model.context
    if share.batch_windows * context != run.recipe.batch_tokens:
        raise InputError(
            f"run {run.run_id}",
            [
                Fault(
                    "layout",
                    f"{ranks} ranks x micro_batch {layout.micro_batch} x grad_accum "
                    f"{layout.grad_accum} x context {context} are "
                    f"{share.batch_windows * context} tokens, batch_tokens is "
                    f"{run.recipe.batch_tokens}",
                )
            ],
        )
    if run.steps * run.recipe.batch_tokens != run.tokens:
        raise InputError(
            f"run {run.run_id}",
            [f"{run.steps} steps of {run.recipe.batch_tokens} tokens are not {run.tokens} tokens"],
        )
    return share


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank reads in one step: micro-batches, as its task knows them, and their tokens.

    Of a token file a micro-batch is (inputs, targets): int64 of shape (micro_batch, context).
    """

    micros: tuple[Any, ...]
    tokens: int
    tokens_unique: int


class Windows:
    """The windows of a run's token file, memory-mapped."""

    def __init__(self, run: Run) -> None:
        data = run.data
        assert isinstance(data, TokenData)
        self.path = Path(data.path)
        self.context = run.model.context
        self.vocabulary = run.model.vocabulary
        self._dtype = np.dtype(data.dtype).newbyteorder("<")
        self._training_tokens = data.training_tokens
        self.windows = (data.training_tokens - 1) // self.context
        self.evaluation_windows = (data.evaluation_tokens - 1) // self.context
        faults = [
            Fault("data", f"its {name} part of {tokens} tokens holds no window of {self.context}")
            for name, tokens, windows in (
                ("training", data.training_tokens, self.windows),
                ("evaluation", data.evaluation_tokens, self.evaluation_windows),
            )
            if windows < 1
        ]
        try:
            size = self.path.stat().st_size
        except OSError as error:
            raise InputError(data.path, [f"cannot be read: {error.strerror or error}"]) from None
        if size != data.tokens * self._dtype.itemsize:
            expected = data.tokens * self._dtype.itemsize
            faults.append(
                Fault("data", f"{size} bytes, planned were {expected} ({data.tokens} {data.dtype})")
            )
        if faults:
            raise InputError(data.path, faults)
        self._tokens = np.memmap(self.path, dtype=self._dtype, mode="r")
        self._order = WindowOrder(self.windows, seed=run.seed)
        self._offsets = np.arange(self.context + 1)
        self._check_ids = np.iinfo(self._dtype).max >= self.vocabulary
        self._ahead: tuple[int, Tokens] = (0, np.empty(0, dtype=np.int64))

    def batch(self, step: int, share: Share) -> Batch:
        """What the rank of `share` reads in `step`."""
        first = step * share.batch_windows
        order = self._places(first, share.batch_windows)
        micros, windows, unique = [], 0, 0
        for part in share.slices():
            tokens = self._gather(order[part] * self.context)
            micros.append((tokens[:, :-1], tokens[:, 1:]))
            windows += len(tokens)
            # Places beyond the first epoch repeat what has been read.
            unique += int(np.clip(self.windows - first - part.start, 0, len(tokens)))
        return Batch(
            micros=tuple(micros),
            tokens=windows * self.context,
            tokens_unique=unique * self.context,
        )

    def evaluation(self, first: int, count: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets of the held-out windows first .. first+count-1."""
        starts = self._training_tokens + np.arange(first, first + count) * self.context
        tokens = self._gather(starts)
        return tokens[:, :-1], tokens[:, 1:]

    def _places(self, first: int, count: int) -> Tokens:
        start, known = self._ahead
        if not start <= first <= first + count <= start + len(known):
            start, known = first, self._order(np.arange(first, first + max(count, _AHEAD_WINDOWS)))
            self._ahead = (start, known)
        places: Tokens = known[first - start : first - start + count]
        return places

    def _gather(self, starts: Tokens) -> Tokens:
        tokens: Tokens = self._tokens[starts[:, None] + self._offsets].astype(np.int64)
        if self._check_ids and tokens.max() >= self.vocabulary:
            row, column = np.argwhere(tokens >= self.vocabulary)[0]
            raise InputError(
                str(self.path),
                [
                    Fault(
                        f"token {starts[row] + column}",
                        f"its id {tokens[row, column]} is outside the vocabulary of "
                        f"{self.vocabulary}",
                    )
                ],
            )
        return tokens


def verify_content(run: Run) -> None:
    """Raise InputError unless the token file is the one that was planned, by its fingerprint."""
    try:
        found = fingerprint(run.data.path)
    except OSError as error:
        raise InputError(run.data.path, [f"cannot be read: {error.strerror or error}"]) from None
    if found != run.data.fingerprint:
        raise InputError(
            run.data.path,
            [
                Fault(
                    "data.fingerprint",
                    f"its content is {found}, planned was {run.data.fingerprint}",
                    "the file changed after the campaign was planned",
                )
            ],
        )
