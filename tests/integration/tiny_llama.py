"""A Llama of random weights on disk with a tokenizer of bytes, written without transformers."""

import json
import struct
from pathlib import Path

import numpy as np

VOCABULARY, BOS, EOS = 320, 256, 257
WIDTH, LAYERS, HEADS, KV_HEADS, MLP = 256, 2, 4, 2, 512
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32",
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": MLP,
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "head_dim": WIDTH // HEADS, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "bos_token_id": BOS, "eos_token_id": EOS,
}  # fmt: skip


def write_tiny_llama(folder: Path) -> Path:
    """config.json, model.safetensors, tokenizer.json and its configuration; returns the folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    # What a server would take for its defaults, and llem's studies must not.
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": EOS, "do_sample": True, "repetition_penalty": 5.0, "top_k": 1})
    )
    _write_safetensors(folder / "model.safetensors", _weights())
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer()))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        })
    )  # fmt: skip
    return folder


def _weights() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(0)
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    ones = {"model.norm.weight": (WIDTH,)}
    for i in range(LAYERS):
        name = f"model.layers.{i}"
        for part, shape in {"q": (WIDTH, WIDTH), "k": (kv, WIDTH), "v": (kv, WIDTH),
                            "o": (WIDTH, WIDTH)}.items():  # fmt: skip
            shapes[f"{name}.self_attn.{part}_proj.weight"] = shape
        for part, shape in {"gate": (MLP, WIDTH), "up": (MLP, WIDTH), "down": (WIDTH, MLP)}.items():
            shapes[f"{name}.mlp.{part}_proj.weight"] = shape
        ones[f"{name}.input_layernorm.weight"] = (WIDTH,)
        ones[f"{name}.post_attention_layernorm.weight"] = (WIDTH,)
    drawn = {n: chance.normal(0, 0.05, shape).astype("<f4") for n, shape in shapes.items()}
    return drawn | {name: np.ones(shape, "<f4") for name, shape in ones.items()}


def _write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    at, head = 0, {}
    for name, values in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(values.shape),
                      "data_offsets": [at, at + values.nbytes]}  # fmt: skip
        at += values.nbytes
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            file.write(values.tobytes())


def _tokenizer() -> dict:
    """Byte-level BPE without merges: a token is a byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain}
    letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": True}  # fmt: skip
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
               "special": True}  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [
            {"id": BOS, "content": "<s>", **special}, {"id": EOS, "content": "</s>", **special},
        ],
        "normalizer": None, "pre_tokenizer": byte_level, "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "merges": [],
            "vocab": {letters[byte]: byte for byte in range(256)} | {"<s>": BOS, "</s>": EOS},
        },
    }  # fmt: skip
