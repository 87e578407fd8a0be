"""Other people's decoders, of the shape of one of llem's: the same parameters, on the same tokens.

`litgpt` and `transformers` are needed by the benchmarks that compare with them, by nothing else.
"""

from __future__ import annotations

from importlib import metadata
from importlib.util import find_spec
from typing import Any

from llem.campaign import Decoder

PACKAGES = {"litgpt": "litgpt", "transformers": "transformers", "trainer": "transformers"}


def installed(peer: str) -> str:
    """The version of a peer's package, '' where it is not installed."""
    package = PACKAGES[peer]
    return metadata.version(package) if find_spec(package) else ""


def litgpt_model(shape: Decoder) -> Any:
    """litgpt's GPT, its weights as its own pretraining draws them."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from litgpt.pretrain import initialize_weights

    config = Config(
        name="peer",
        block_size=shape.context,
        vocab_size=shape.vocabulary,
        padded_vocab_size=shape.vocabulary,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        n_query_groups=shape.heads,
        head_size=shape.head_size,
        intermediate_size=shape.mlp_width,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        norm_eps=shape.norm_eps,
    )
    model = GPT(config)
    initialize_weights(_NoFabric(), model, n_layer=config.n_layer, n_embd=config.n_embd)
    if shape.tied_embeddings:
        model.lm_head.weight = model.transformer.wte.weight
    return _counted(model, shape)


class _NoFabric:
    """What litgpt asks its Fabric while it draws weights: nothing that one process would need."""

    strategy = None

    def print(self, *_: Any) -> None:
        return


def transformers_model(shape: Decoder) -> Any:
    """transformers' LlamaForCausalLM, its weights as its own configuration draws them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.context,
        rms_norm_eps=shape.norm_eps,
        tie_word_embeddings=shape.tied_embeddings,
        attention_bias=False,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    config._attn_implementation = "sdpa"
    return _counted(LlamaForCausalLM(config), shape)


def _counted(model: Any, shape: Decoder) -> Any:
    found = sum(p.numel() for p in model.parameters())
    if found != shape.params:
        raise SystemExit(f"{type(model).__name__} has {found} parameters, llem's {shape.params}")
    return model
