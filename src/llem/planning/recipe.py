"""The recipe: batch size and learning rate for a model of N parameters on D tokens, by a rule.

`steplaw` (arXiv 2503.04715, eq. 1): learning rate 1.79 N^-0.713 D^0.307, batch 0.58 D^0.571
tokens, with N without embeddings. The rule was fitted from 60 M parameters on; below, its rate is
capped at `max_learning_rate`.
"""

from __future__ import annotations

import math

from llem.campaign.architecture import Architecture
from llem.campaign.campaign import Training
from llem.campaign.run import Recipe

# Too few steps, and a schedule has no room for a warm-up and a decay.
MIN_STEPS = 64


def recipe_for(model: Architecture, tokens: float, choice: Training) -> Recipe:
    """The recipe for about `tokens` tokens; what the user fixed stays as it is.

    The batch is a power of two of sequences, rounded to the nearest, so that it divides among
    ranks; it never depends on the layout, which must not change a run's result.
    """
    batch = choice.batch_tokens or 0.58 * tokens**0.571
    sequences = max(1.0, batch / model.context)
    if choice.batch_tokens:
        sequences = round(sequences)
    else:
        sequences = min(sequences, max(1.0, tokens / MIN_STEPS / model.context))
        sequences = 2 ** max(0, round(math.log2(sequences)))
    batch_tokens = int(sequences) * model.context
    rate = choice.learning_rate or min(
        choice.max_learning_rate, 1.79 * model.params_nonembedding**-0.713 * tokens**0.307
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
