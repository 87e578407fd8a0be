"""The recipe: batch size and learning rate for a model of N parameters on D tokens, by a rule.

`steplaw` (arXiv 2503.04715, eq. 1): learning rate 1.79 N^-0.713 D^0.307 with N without
embeddings, batch 0.58 D^0.571 tokens. Fitted from 60 M parameters on.

`olmo` (the model ladder of OLMo-core): batch 2048 * 160 (N/108e6)^(2/3) tokens, learning rate
0.0047 (N/108e6)^(-1/3) / 2 with N without embeddings, beta2 0.95 from 524,288 tokens a batch on
and 0.99 below, a warm-up over N tokens.

`marin` (the isoFLOP sweeps of marin): a batch for 2^16 steps, of at least 8 sequences; learning
rate 0.33 sqrt(B) / width with B in sequences, at most 0.01, for which the batch is halved; beta2
0.98^(B/128), at least 0.95.

`nanochat`: batch 2^19 (D/D_ref)^0.383 tokens (arXiv 2505.13738), learning rate by sqrt(B/B_ref)
and 1/sqrt(width/768), from its model of 12 layers with D_ref = 10.5 * 110e6 tokens. It trains
matrices with Muon; the rate of AdamW at that one point is taken from StepLaw (85 M parameters).

`small`: batch 0.29 D^0.571 tokens, learning rate 0.0155 (N / 1e4)^-0.44 (B / 1024)^0.5 with all
parameters. Measured with llem's own decoder on byte-level text, 10 k to 220 k parameters, 0.2 M
to 3 M tokens, 60 runs: there StepLaw's rate is 3 to 15 times too high.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from llem.campaign.architecture import Architecture, Decoder
from llem.campaign.campaign import Training
from llem.campaign.run import Asked, Recipe

# Too few steps, and a schedule has no room for a warm-up and a decay.
MIN_STEPS = 64
WARMUP_FRACTION = 0.05
BETA2 = 0.95
# A warm-up that a rule counts in tokens must leave a short run room to train.
LONGEST_WARMUP = 0.25


@dataclass(frozen=True)
class Rule:
    """Batch in tokens from model and D; peak learning rate from model, D and batch in tokens.

    `beta2` follows from model and batch; `warmup_tokens` from the model, where the rule has one.
    """

    batch_tokens: Callable[[Architecture, float], float]
    learning_rate: Callable[[Architecture, float, float], float]
    beta2: Callable[[Architecture, float], float] = lambda _model, _batch: BETA2
    warmup_tokens: Callable[[Architecture], float] | None = None


def _steplaw_rate(params: float, tokens: float) -> float:
    return 1.79 * math.pow(params, -0.713) * math.pow(tokens, 0.307)


def _width(model: Architecture) -> float:
    """A class of the user's own is taken for a decoder of its size: N = 12 layers * width^2,
    with as many layers as width / 64."""
    if isinstance(model, Decoder):
        return model.width
    return math.exp(math.log(64 / 12 * model.params) / 3)


def _marin_batch(model: Architecture, tokens: float) -> float:
    sequences = max(8.0, tokens / 2**16 / model.context)
    highest = (0.01 * _width(model) / 0.33) ** 2
    return max(1.0, min(sequences, highest)) * model.context


_NANOCHAT_TOKENS = 10.5 * 110e6

RULES = {
    "steplaw": Rule(
        batch_tokens=lambda _, tokens: 0.58 * tokens**0.571,
        learning_rate=lambda model, tokens, _: _steplaw_rate(model.params_nonembedding, tokens),
    ),
    "olmo": Rule(
        batch_tokens=lambda model, _: 2048 * 160 * (model.params_nonembedding / 108e6) ** (2 / 3),
        learning_rate=lambda model, *_: (
            0.0047 * (model.params_nonembedding / 108e6) ** (-1 / 3) / 2
        ),
        beta2=lambda _, batch: 0.95 if batch >= 524288 else 0.99,
        warmup_tokens=lambda model: model.params_nonembedding,
    ),
    "marin": Rule(
        batch_tokens=_marin_batch,
        learning_rate=lambda model, _, batch: min(
            0.01, 0.33 * math.sqrt(batch / model.context) / _width(model)
        ),
        beta2=lambda model, batch: max(0.95, 0.98 ** (batch / model.context / 128)),
    ),
    "nanochat": Rule(
        batch_tokens=lambda _, tokens: 2**19 * (tokens / _NANOCHAT_TOKENS) ** 0.383,
        learning_rate=lambda model, _, batch: (
            _steplaw_rate(85e6, _NANOCHAT_TOKENS) * math.sqrt(batch / 2**19 * 768 / _width(model))
        ),
    ),
    "small": Rule(
        batch_tokens=lambda _, tokens: 0.29 * tokens**0.571,
        learning_rate=lambda model, _, batch: (
            0.0155 * (model.params / 1e4) ** -0.44 * (batch / 1024) ** 0.5
        ),
    ),
}


def recipe_for(
    model: Architecture, tokens: float, choice: Training, *, batch_tokens: int | None = None
) -> Recipe:
    """The recipe for about `tokens` tokens; what the user fixed stays as it is.

    The batch is a power of two of sequences, rounded to the nearest, so that it divides among
    ranks; it never depends on the layout, which must not change a run's result. `batch_tokens`
    keeps the batch of a recipe made before, where a run is lengthened a little.
    """
    rule = RULES[choice.rule]
    batch = batch_tokens or _whole_batch(model, tokens, choice)
    asked = asked_of(model, tokens, choice, batch_tokens=batch)
    steps = max(1, int(tokens // batch))
    warmup = (WARMUP_FRACTION if choice.warmup_fraction is None else choice.warmup_fraction) * steps
    if choice.warmup_fraction is None and rule.warmup_tokens is not None:
        warmup = min(rule.warmup_tokens(model) / batch, LONGEST_WARMUP * steps)
    return Recipe(
        batch_tokens=batch,
        learning_rate=float(f"{min(asked.learning_rate, _highest_rate(choice)):.4g}"),
        warmup_steps=min(steps - 1, math.ceil(warmup)),
        schedule=choice.schedule,
        decay_fraction=choice.decay_fraction,
        beta2=choice.beta2 or float(f"{rule.beta2(model, batch):.6g}"),
        weight_decay=choice.weight_decay,
        clip_norm=choice.clip_norm,
        precision=choice.precision,
        rule="user" if choice.learning_rate and choice.batch_tokens else choice.rule,
        optimiser=choice.optimiser,
        z_loss=choice.z_loss,
        parametrisation=choice.parametrisation,
        base_width=choice.base_width or 0,
    )


def asked_of(model: Architecture, tokens: float, choice: Training, *, batch_tokens: int) -> Asked:
    """What the rule (or the user) asks for, beside which the recipe's own values are rounded."""
    rule = RULES[choice.rule]
    return Asked(
        batch_tokens=choice.batch_tokens or rule.batch_tokens(model, tokens),
        learning_rate=choice.learning_rate or rule.learning_rate(model, tokens, batch_tokens),
    )


def _highest_rate(choice: Training) -> float:
    return math.inf if choice.learning_rate else choice.max_learning_rate


def _whole_batch(model: Architecture, tokens: float, choice: Training) -> int:
    if choice.batch_tokens:
        return max(1, round(choice.batch_tokens / model.context)) * model.context
    sequences = max(1.0, RULES[choice.rule].batch_tokens(model, tokens) / model.context)
    sequences = min(sequences, max(1.0, tokens / MIN_STEPS / model.context))
    return (1 << max(0, round(math.log2(sequences)))) * model.context
