"""The model ladder: an architecture of the reference family for any number of parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache

from llem.campaign.architecture import Decoder

TOLERANCE = 0.05
MLP_RATIO = 8 / 3
MLP_RATIO_RANGE = (2.0, 4.0)
# Depth grows as the square root of the width: 2-3 layers at width 32, 10 at 512, 29 at 4096,
# through the shapes of published families (Llama, Pythia, OLMo) at the wide end. Never below two
# layers: one costs .1 nats at a hundred thousand parameters.
DEPTH_COEFFICIENT = 0.45


def nearest_decoder(
    params: float, *, vocabulary: int, context: int, tied_embeddings: bool, head_size: int | None
) -> Decoder | None:
    """The best-proportioned decoder whose parameter count is within 5 % of `params`.

    Width and depth are taken from a grid; the MLP's width then closes the gap, in multiples that
    matrix units like. None where no shape comes near enough (a vocabulary too large for N).
    """
    best: tuple[float, int, int, int] | None = None
    tables = (1 if tied_embeddings else 2) * vocabulary
    for miss, layers, width, mlp in _candidates(float(params), tables, head_size):
        if best is None or miss < best[0]:
            best = (miss, layers, width, mlp)
    if best is None:
        return None
    _, layers, width, mlp = best
    return Decoder(
        layers=layers, width=width, heads=width // (head_size or _head_size(width)), mlp_width=mlp,
        vocabulary=vocabulary, context=context, tied_embeddings=tied_embeddings,
    )  # fmt: skip


def smallest_params(*, vocabulary: int, context: int, tied_embeddings: bool) -> int:
    """Parameters of the smallest decoder that the ladder makes."""
    return Decoder(
        layers=2, width=16, heads=1, mlp_width=32,
        vocabulary=vocabulary, context=context, tied_embeddings=tied_embeddings,
    ).params  # fmt: skip


def _candidates(
    params: float, tables: int, head_size: int | None
) -> Iterator[tuple[float, int, int, int]]:
    """(distance, layers, width, MLP width) of shapes within the tolerance, cheaply counted.

    `tables` is the number of embedding rows, of one or two tables.
    """
    for width in _widths():
        if width % (head_size or _head_size(width)):
            continue
        fixed = tables * width + width
        if fixed - width + 12 * width * width > 1.5 * params and width > 16:
            return
        preferred = DEPTH_COEFFICIENT * math.sqrt(width)
        block = 4 * width * width + 2 * width
        multiple = 4 if width < 64 else 8 if width < 256 else 64 if width < 2048 else 256
        # Only depths at which the MLP's width can come out within its range, give or take one.
        low, high = (block + 3 * width * width * ratio for ratio in MLP_RATIO_RANGE)
        least = max(2, math.floor(0.6 * preferred), math.floor((params - fixed) / high) - 1)
        most = min(math.ceil(1.7 * preferred), math.ceil((params - fixed) / low) + 1)
        for layers in range(least, most + 1):
            # params = tables + layers * (4 w^2 + 3 w m + 2 w) + w, solved for the MLP's width m
            free = (params - fixed) / layers - block
            mlp = max(multiple, multiple * round(free / (3 * width * multiple)))
            if not MLP_RATIO_RANGE[0] <= mlp / width <= MLP_RATIO_RANGE[1]:
                continue
            miss = abs(math.log((fixed + layers * (block + 3 * width * mlp)) / params))
            if miss <= TOLERANCE:
                shape = abs(math.log(layers / preferred)) + abs(math.log(mlp / width / MLP_RATIO))
                yield miss + shape, layers, width, mlp


def _head_size(width: int) -> int:
    # At a few tens of thousand parameters heads of 8 cost .04 nats; 24 is as good as 16.
    if width in (24, 48):
        return 24
    if width < 128:
        return 16
    if width < 512:
        return 32
    return 64 if width < 2048 else 128


@lru_cache
def _widths() -> tuple[int, ...]:
    tiny = (16, 24, 32, 48)
    small = range(64, 128, 16)
    middle = range(128, 512, 32)
    large = range(512, 2048, 64)
    wide = range(2048, 32768 + 1, 256)
    return (*tiny, *small, *middle, *large, *wide)
