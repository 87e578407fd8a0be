#!/usr/bin/env python3
"""Whether the best learning rate of a narrow model is that of a wide one, by parametrisation.

    python tests/benchmarks/mup_transfer.py                # under a minute of one core

Decoders of widths 32, 64 and 128 on some Python source, 120 steps of 512 tokens at each of six
rates; the table has the mean training loss of the last ten steps. Exit status 1 where muP's best
rate moves by more than a factor of two from the narrowest to the widest.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from llem.campaign import Decoder, Recipe
from llem.training.model import build_model
from llem.training.optimiser import adamw, set_rate
from llem.training.task import token_loss

WIDTHS = (32, 64, 128)
RATES = tuple(2.0**-power for power in (9, 8, 7, 6, 5, 4))
STEPS, WARMUP, SEQUENCES, CONTEXT = 120, 10, 16, 32


def last_loss(width: int, recipe: Recipe, tokens: torch.Tensor) -> float:
    shape = Decoder(
        layers=2, width=width, heads=4, mlp_width=2 * width, vocabulary=256, context=CONTEXT
    )
    model = build_model(shape, seed=0, base_width=recipe.base_width)
    optimiser = adamw(model, recipe)
    draw = torch.Generator().manual_seed(1)
    losses = []
    for step in range(STEPS):
        starts = torch.randint(0, len(tokens) - CONTEXT - 1, (SEQUENCES,), generator=draw)
        batch = torch.stack([tokens[i : i + CONTEXT + 1] for i in starts])
        optimiser.zero_grad()
        loss = token_loss(model(batch[:, :-1]), batch[:, 1:])
        loss.backward()
        set_rate(optimiser, recipe.learning_rate * min(1, (step + 1) / WARMUP))
        optimiser.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


def main() -> int:
    torch.set_num_threads(1)
    tokens = torch.tensor(list(Path(argparse.__file__).read_bytes()))
    plain = Recipe(batch_tokens=512, learning_rate=0.0, warmup_steps=WARMUP, weight_decay=0.0)
    ways = {
        "standard": plain,
        "mup": replace(plain, parametrisation="mup", base_width=WIDTHS[0]),
    }
    heads = " | ".join(f"2^{math.log2(rate):.0f}" for rate in RATES)
    print(f"| parametrisation | width | {heads} | best |\n|{'---|' * (3 + len(RATES))}")
    best: dict[str, list[float]] = {name: [] for name in ways}
    for name, recipe in ways.items():
        for width in WIDTHS:
            found = [last_loss(width, replace(recipe, learning_rate=r), tokens) for r in RATES]
            best[name].append(RATES[found.index(min(found))])
            cells = " | ".join(f"{loss:.3f}" for loss in found)
            print(f"| {name} | {width} | {cells} | 2^{math.log2(best[name][-1]):.0f} |", flush=True)
    return 0 if max(best["mup"]) <= 2 * min(best["mup"]) else 1


if __name__ == "__main__":
    sys.exit(main())
