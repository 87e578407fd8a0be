"""Tiny deployments for tests: a model of a few thousand random weights, and runs of it."""

import math

from llem.campaign import Arrival, Deployment, Layout, Predicted, Prompts, Serving, Warmup
from llem.campaign.options import effective_options
from llem.campaign.study.served import model_from_config

LLAMA = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
SYNTHETIC = {"kind": "synthetic", "count": 6, "input_tokens": 9, "output_tokens": 7}
UNKNOWN = Predicted(duration_s=math.nan, gpu_hours=math.nan, energy_j=math.nan,
                    memory_bytes=math.nan)  # fmt: skip


def serving(
    *,
    config=None,
    model=None,
    options=None,
    prompts=None,
    arrival=None,
    layout=None,
    cycle=0,
    warmup=None,
    backend="transformers",
    cooldown_s=0.0,
):
    """A run of one deployment; what is not named is the smallest that makes sense."""
    config = {**LLAMA, **(config or {})}
    asked = dict(options or {})
    return Serving(
        deployment=Deployment(
            model=model or model_from_config("tiny", config),
            backend=backend,
            options=asked,
            effective=effective_options(backend, asked, config=config),
            prompts=Prompts(**{**SYNTHETIC, **(prompts or {})}),
            arrival=Arrival(**(arrival or {})),
            layout=Layout(**(layout or {})),
        ),
        cycle=cycle,
        predicted=UNKNOWN,
        warmup=Warmup(**{"least": 1, "most": 1, **(warmup or {})}),
        cooldown_s=cooldown_s,
    )
