"""The model ladder: an architecture of the reference family for any number of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from llem.campaign.architecture import Decoder

TOLERANCE = 0.05
MLP_RATIO = 8 / 3
MLP_RATIO_RANGE = (2.0, 4.0)
# Depth grows as the square root of the width: 3 layers at width 32, 10 at 512, 29 at 4096,
# through the shapes of published families (Llama, Pythia, OLMo) at the wide end. Never below two
# layers: one costs .1 nats at a hundred thousand parameters. It weighs more than the MLP's ratio,
# since a ladder that hops between two and three layers has a law's losses hop with it.
DEPTH_COEFFICIENT = 0.45
LEAST_DEPTH = 2.7
DEPTH_WEIGHT = 2.0


def nearest_decoder(
    params: float, *, vocabulary: int, context: int, tied_embeddings: bool, head_size: int | None
) -> Decoder | None:
    """The best-proportioned decoder whose parameter count is within 5 % of `params`.

    Width and depth are taken from a grid; the MLP's width then closes the gap, in multiples that
    matrix units like. None where no shape comes near enough (a vocabulary too large for N).
    """
    tables = (1 if tied_embeddings else 2) * vocabulary
    found = _best_shape(float(params), _widths(tables, head_size))
    if found is None:
        return None
    layers, width, mlp = found
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


def _best_shape(params: float, widths: Sequence[_Width]) -> tuple[int, int, int] | None:
    """Layers, width and MLP width within the tolerance; the best-proportioned of those."""
    best, found = math.inf, None
    for row in widths:
        if not row.lightest < params < row.heaviest:
            continue
        rest = params - row.fixed
        # Only depths at which the MLP's width can come out within its range, give or take one.
        least = max(row.fewest, math.floor(rest / row.high) - 1)
        most = min(row.most, math.ceil(rest / row.low) + 1)
        for layers in range(least, most + 1):
            depth = DEPTH_WEIGHT * abs(math.log(layers / row.preferred))
            # A plan looks at some ten thousand shapes: what cannot be the best goes unmeasured.
            if depth >= best:
                continue
            # params = tables + layers * (4 w^2 + 3 w m + 2 w) + w, solved for the MLP's width m
            free = rest / layers - row.block
            mlp = max(row.multiple, row.multiple * round(free / row.step))
            ratio = mlp / row.width
            if not MLP_RATIO_RANGE[0] <= ratio <= MLP_RATIO_RANGE[1]:
                continue
            made = row.fixed + layers * (row.block + 3 * row.width * mlp)
            miss = abs(math.log(made / params))
            if miss <= TOLERANCE:
                shape = depth + abs(math.log(ratio / MLP_RATIO))
                if miss + shape < best:
                    best, found = miss + shape, (layers, row.width, mlp)
    return found


class _Width(NamedTuple):
    """What all shapes of a width share.

    fixed: parameters besides the layers. block: of a layer without its MLP; low and high: of one
    with it, at both ends of the MLP's range. step: by which the MLP's multiple changes a layer.
    preferred, fewest, most: layers. lightest, heaviest: parameters between which there are shapes.
    """

    width: int
    fixed: int
    block: int
    low: float
    high: float
    multiple: int
    step: int
    preferred: float
    fewest: int
    most: int
    lightest: float
    heaviest: float


@lru_cache
def _widths(tables: int, head_size: int | None) -> tuple[_Width, ...]:
    """Every width that heads divide, narrowest first. `tables` is the number of embedding rows."""
    tiny = range(16, 64, 8)
    small = range(64, 128, 16)
    middle = range(128, 512, 32)
    large = range(512, 2048, 64)
    wide = range(2048, 32768 + 1, 256)
    rows = []
    for width in (*tiny, *small, *middle, *large, *wide):
        if width % (head_size or _head_size(width)):
            continue
        block = 4 * width * width + 2 * width
        low, high = (block + 3 * width * width * ratio for ratio in MLP_RATIO_RANGE)
        multiple = 4 if width < 64 else 8 if width < 256 else 64 if width < 2048 else 256
        preferred = max(LEAST_DEPTH, DEPTH_COEFFICIENT * math.sqrt(width))
        fixed = tables * width + width
        fewest, most = max(2, math.floor(0.6 * preferred)), math.ceil(1.7 * preferred)
        # A model is given a width only where two thirds of the usual 12 w^2 of one layer fit.
        usual = (tables * width + 12 * width * width) / 1.5 if width > 16 else 0.0
        rows.append(
            _Width(
                width=width, fixed=fixed, block=block, low=low, high=high, multiple=multiple,
                step=3 * width * multiple, preferred=preferred, fewest=fewest, most=most,
                lightest=max(usual, fixed + (fewest - 2) * low), heaviest=fixed + (most + 2) * high,
            )
        )  # fmt: skip
    return tuple(rows)


def _head_size(width: int) -> int:
    # At a few tens of thousand parameters heads of 8 cost .04 nats; 24 is as good as 16.
    if width < 64 and width % 16:
        return width if width < 32 else width // 2
    if width == 48:
        return 24
    if width < 128:
        return 16
    if width < 512:
        return 32
    return 64 if width < 2048 else 128
