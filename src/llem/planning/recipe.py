"""The recipe: batch size and learning rate for a model of N parameters on D tokens, by a rule.

`steplaw` (arXiv 2503.04715, eq. 1): learning rate 1.79 N^-0.713 D^0.307 with N without
embeddings, batch 0.58 D^0.571 tokens. Fitted from 60 M parameters on.

`small`: batch 0.29 D^0.571 tokens, learning rate 0.0155 (N / 1e4)^-0.44 (B / 1024)^0.5 with all
parameters. Measured with llem's own decoder on byte-level text, 10 k to 220 k parameters, 0.2 M
to 3 M tokens, 60 runs: there StepLaw's rate is 3 to 15 times too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llem.campaign.architecture import Architecture
from llem.campaign.campaign import Training
from llem.campaign.run import Recipe

# Too few steps, and a schedule has no room for a warm-up and a decay.
MIN_STEPS = 64


@dataclass(frozen=True)
class Rule:
    """Batch size in tokens from D, and peak learning rate from model, D and batch."""

    batch_tokens: Callable[[float], float]
    learning_rate: Callable[[Architecture, float, int], float]


RULES = {
    "steplaw": Rule(
        batch_tokens=lambda tokens: 0.58 * tokens**0.571,
        learning_rate=lambda model, tokens, _: (
            1.79 * model.params_nonembedding**-0.713 * tokens**0.307
        ),
    ),
    "small": Rule(
        batch_tokens=lambda tokens: 0.29 * tokens**0.571,
        learning_rate=lambda model, _, batch: (
            0.0155 * (model.params / 1e4) ** -0.44 * (batch / 1024) ** 0.5
        ),
    ),
}


def recipe_for(model: Architecture, tokens: float, choice: Training) -> Recipe:
    """The recipe for about `tokens` tokens; what the user fixed stays as it is.

    The batch is a power of two of sequences, rounded to the nearest, so that it divides among
    ranks; it never depends on the layout, which must not change a run's result.
    """
    rule = RULES[choice.rule]
    batch = choice.batch_tokens or rule.batch_tokens(tokens)
    sequences = max(1.0, batch / model.context)
    if choice.batch_tokens:
        sequences = round(sequences)
    else:
        sequences = min(sequences, max(1.0, tokens / MIN_STEPS / model.context))
        sequences = 2 ** max(0, round(math.log2(sequences)))
    batch_tokens = int(sequences) * model.context
    rate = choice.learning_rate or min(
        choice.max_learning_rate, rule.learning_rate(model, tokens, batch_tokens)
    )
    steps = max(1, int(tokens // batch_tokens))
    return Recipe(
        batch_tokens=batch_tokens,
        learning_rate=float(f"{rate:.4g}"),
        warmup_steps=min(steps - 1, math.ceil(choice.warmup_fraction * steps)),
        schedule=choice.schedule,
        decay_fraction=choice.decay_fraction,
        beta2=choice.beta2,
        weight_decay=choice.weight_decay,
        clip_norm=choice.clip_norm,
        precision=choice.precision,
        rule="user" if choice.learning_rate and choice.batch_tokens else choice.rule,
    )
