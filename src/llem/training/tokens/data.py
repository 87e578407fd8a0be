"""Windows of token files: which tokens each rank reads at each step, and which are held out.

Window i of the training part covers its tokens [i*T, i*T + T + 1): T inputs and, one further on,
their T targets; `llem.training.tokens.packing` has the other way, which keeps documents whole. The
global batch of step s is the places s*B .. (s+1)*B of the order, whatever the number of ranks and
micro-batches it is divided among; in a mixture the files take turns at these places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llem.campaign import Architecture, Run, TokenData
from llem.campaign.data.prepared import read_index
from llem.campaign.data.tokendata import DOCUMENTS
from llem.campaign.data.tokenfile import fingerprint
from llem.errors import Fault, InputError
from llem.training.tokens.mixture import MixtureOrder
from llem.training.tokens.order import Ahead, WindowOrder
from llem.training.tokens.packing import Packed, pack_documents

Tokens = NDArray[np.int64]

# Places looked up at once.
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
    """The windows of a run's token files: in which order they are trained on, and the held-out."""

    def __init__(self, run: Run) -> None:
        data = run.data
        assert isinstance(data, TokenData)
        self.context = run.model.context
        found: list[_File] = []
        faults: dict[str, list[Fault | str]] = {}
        for number, part in enumerate(data.parts):
            # The first file of a mixture reads in the order of a file alone.
            seed = run.seed + (number << 32)
            try:
                found.append(_File(part.data, run.model, seed=seed))
            except InputError as error:
                faults.setdefault(error.source, []).extend(error.faults)
        if len(faults) == 1:
            raise InputError(*faults.popitem())
        if faults:
            told = [Fault(path, str(fault)) for path, some in faults.items() for fault in some]
            raise InputError(f"run {run.run_id}", told)
        self.files = tuple(found)
        weights = [part.weight for part in data.parts]
        self.weights = tuple(weight / sum(weights) for weight in weights)
        self._turns = MixtureOrder(weights) if data.mixture else None
        # Where the held-out windows of each file begin among all.
        self._begins = np.cumsum([0, *(file.evaluation_windows for file in found)])
        self._ahead = Ahead(self._look_up, least=_AHEAD_WINDOWS)

    @property
    def windows(self) -> int:
        """Training windows of all files."""
        return sum(file.windows for file in self.files)

    @property
    def evaluation_windows(self) -> int:
        return int(self._begins[-1])

    def batch(self, step: int, share: Share) -> Batch:
        """What the rank of `share` reads in `step`."""
        files, at, new = self._ahead(step * share.batch_windows, share.batch_windows)
        micros, windows, unique = [], 0, 0
        for part in share.slices():
            micros.append(self._of_each(files[part], at[part], _File.training))
            windows += part.stop - part.start
            unique += int(new[part].sum())
        return Batch(
            micros=tuple(micros),
            tokens=windows * self.context,
            tokens_unique=unique * self.context,
        )

    def evaluation(self, first: int, count: int) -> tuple[Tokens, Tokens]:
        """Inputs and targets of the held-out windows first .. first+count-1, file after file."""
        asked = np.arange(first, first + count)
        files = np.searchsorted(self._begins, asked, side="right") - 1
        return self._of_each(files, asked - self._begins[files], _File.evaluation)

    def _look_up(self, places: Tokens) -> tuple[Tokens, Tokens, Tokens]:
        """At each place: the file, its window, and 1 where that is new, else 0."""
        if self._turns is None:
            return (np.zeros_like(places), *self.files[0].ordered(places))
        files, within = self._turns(places)
        windows, new = np.empty_like(places), np.empty_like(places)
        for number, file in enumerate(self.files):
            own = files == number
            windows[own], new[own] = file.ordered(within[own])
        return files, windows, new

    def _of_each(
        self,
        files: Tokens,
        windows: Tokens,
        read: Callable[[_File, Tokens], tuple[Tokens, Tokens]],
    ) -> tuple[Tokens, Tokens]:
        if len(self.files) == 1:
            return read(self.files[0], windows)
        inputs = np.empty((len(windows), self.context), dtype=np.int64)
        targets = np.empty_like(inputs)
        for number in np.unique(files).tolist():
            own = files == number
            inputs[own], targets[own] = read(self.files[number], windows[own])
        return inputs, targets


class _File:
    """One token file, memory-mapped. Raises InputError where it is not what was planned."""

    def __init__(self, data: TokenData, model: Architecture, *, seed: int) -> None:
        self.path = Path(data.path)
        self.context = context = model.context
        self._vocabulary = model.vocabulary
        self._dtype = np.dtype(data.dtype).newbyteorder("<")
        self._training_tokens = data.training_tokens
        self.windows = (data.training_tokens - 1) // context
        self.evaluation_windows = (data.evaluation_tokens - 1) // context
        faults = [
            Fault("data", f"its {name} part of {tokens} tokens holds no window of {context}")
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
        self._packed: Packed | None = None
        if data.packing == DOCUMENTS:
            index = read_index(data.path, tokens=data.tokens)
            self._packed = pack_documents(index, tokens=data.training_tokens, context=context)
        self._tokens = np.memmap(self.path, dtype=self._dtype, mode="r")
        # Rows that overlap in memory: to take one is to copy its tokens, and no more.
        self._rows = np.lib.stride_tricks.sliding_window_view(self._tokens, context + 1)
        self._order = WindowOrder(self.windows, seed=seed)
        self._check_ids = np.iinfo(self._dtype).max >= self._vocabulary

    def ordered(self, places: Tokens) -> tuple[Tokens, Tokens]:
        """The windows at `places` of this file's own order; 1 where none has been read before."""
        return self._order(places), (places < self.windows).astype(np.int64)

    def training(self, windows: Tokens) -> tuple[Tokens, Tokens]:
        """Inputs and targets of training windows."""
        if self._packed is None:
            return self._cut(windows * self.context)
        at = self._packed.positions(windows)
        return self._ids(at), self._ids(at + 1)

    def evaluation(self, windows: Tokens) -> tuple[Tokens, Tokens]:
        """Inputs and targets of held-out windows: of the stream, however training is packed."""
        return self._cut(self._training_tokens + windows * self.context)

    def _cut(self, starts: Tokens) -> tuple[Tokens, Tokens]:
        tokens = self._checked(self._rows[starts].astype(np.int64), lambda: (
            starts[:, None] + np.arange(self.context + 1)))  # fmt: skip
        return tokens[:, :-1], tokens[:, 1:]

    def _ids(self, at: Tokens) -> Tokens:
        return self._checked(self._tokens[at].astype(np.int64), lambda: at)

    def _checked(self, tokens: Tokens, at: Callable[[], Tokens]) -> Tokens:
        if self._check_ids and tokens.max() >= self._vocabulary:
            row, column = np.argwhere(tokens >= self._vocabulary)[0]
            raise InputError(
                str(self.path),
                [
                    Fault(
                        f"token {at()[row, column]}",
                        f"its id {tokens[row, column]} is outside the vocabulary of "
                        f"{self._vocabulary}",
                    )
                ],
            )
        return tokens


def verify_content(run: Run) -> None:
    """Raise InputError unless the token files are those that were planned, by fingerprint."""
    assert isinstance(run.data, TokenData)
    for part in run.data.parts:
        path, planned = part.data.path, part.data.fingerprint
        try:
            found = fingerprint(path)
        except OSError as error:
            raise InputError(path, [f"cannot be read: {error.strerror or error}"]) from None
        if found != planned:
            raise InputError(
                path,
                [
                    Fault(
                        "data.fingerprint",
                        f"its content is {found}, planned was {planned}",
                        "the file changed after the campaign was planned",
                    )
                ],
            )
