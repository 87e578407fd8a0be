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
    best = min(
        _candidates(
            float(params),
            vocabulary=vocabulary,
            context=context,
            tied_embeddings=tied_embeddings,
            head_size=head_size,
        ),
        key=lambda pair: pair[0],
        default=None,
    )
    return best[1] if best else None


def smallest_params(*, vocabulary: int, context: int, tied_embeddings: bool) -> int:
    """Parameters of the smallest decoder that the ladder makes."""
    return Decoder(
        layers=2, width=16, heads=1, mlp_width=32,
        vocabulary=vocabulary, context=context, tied_embeddings=tied_embeddings,
    ).params  # fmt: skip


def _candidates(
    params: float, *, vocabulary: int, context: int, tied_embeddings: bool, head_size: int | None
) -> Iterator[tuple[float, Decoder]]:
    for width in _widths():
        head = head_size or _head_size(width)
        if width % head:
            continue
        tables = (1 if tied_embeddings else 2) * vocabulary * width
        if tables + 12 * width * width > 1.5 * params and width > 16:
            return
        preferred = DEPTH_COEFFICIENT * math.sqrt(width)
        multiple = 4 if width < 64 else 8 if width < 256 else 64 if width < 2048 else 256
        for layers in range(max(2, math.floor(0.6 * preferred)), math.ceil(1.7 * preferred) + 1):
            # params = tables + layers * (4 w^2 + 3 w m + 2 w) + w, solved for the MLP's width m
            free = (params - tables - width) / layers - 4 * width * width - 2 * width
            mlp = max(multiple, multiple * round(free / (3 * width * multiple)))
            if not MLP_RATIO_RANGE[0] <= mlp / width <= MLP_RATIO_RANGE[1]:
                continue
            model = Decoder(
                layers=layers, width=width, heads=width // head, mlp_width=mlp,
                vocabulary=vocabulary, context=context, tied_embeddings=tied_embeddings,
            )  # fmt: skip
            miss = abs(math.log(model.params / params))
            if miss <= TOLERANCE:
                shape = abs(math.log(layers / preferred)) + abs(math.log(mlp / width / MLP_RATIO))
                yield miss + shape, model


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
