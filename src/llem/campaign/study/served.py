"""A model that is served, from its configuration: parameters and FLOPs by arithmetic alone.

The names are those of Hugging Face transformers. Nothing here needs torch or transformers, so that
a login node can count; of weights on disk the parameters are counted in their files.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from llem.campaign.study.deployment import ServedModel
from llem.errors import Fault, InputError, did_you_mean

# What a decoder's configuration calls each number, by the spellings that families have.
_NAMES: Mapping[str, tuple[str, ...]] = {
    "width": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_size": ("head_dim",),
    "mlp_width": ("intermediate_size", "n_inner", "ffn_dim"),
    "vocabulary": ("vocab_size",),
    "context": ("max_position_embeddings", "n_positions", "n_ctx"),
}
_REQUIRED = ("width", "layers", "heads", "vocabulary")
# Where the configuration says nothing: transformers' own default of the families below.
_CONTEXT = {"llama": 2048, "gpt2": 1024, "gpt_neox": 2048, "opt": 2048}
CONTEXT = 32768
# How many experts a layer has, and through how many of them a token goes.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_top_k")
_EXPERT_TENSOR = re.compile(r"\.experts\.")
# What formats of quantised weights keep beside them (GPTQ, AWQ, compressed-tensors, bitsandbytes,
# MXFP4): no parameters of the model.
_BESIDE = re.compile(
    r"\.(qzeros|scales|g_idx|SCB|weight_format|weight_shape|weight_zero_point)$"
    r"|scale(s|_\w+)?$|\.weight\.\w+"
)
# Elements that hold several numbers, by their type in the file: so many bits each.
_PACKED = {"I32": 32, "U8": 8}


@dataclass(frozen=True, kw_only=True)
class _Family:
    """What sets a family of decoders apart, as far as parameters are concerned.

    `gated` MLPs have three matrices, others two; `grouped` ones may have fewer heads of keys and
    values than of queries; `positions` are learned beyond the context by so
    many; `tied` is whether embedding and output share a table unless the configuration says so.
    """

    gated: bool = True
    grouped: bool = True
    biases: bool = False
    attention_bias: bool = False
    norm_bias: bool = False
    head_norms: bool = False
    norms: int = 2
    positions: int | None = None
    tied: bool = False


FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(),
    "mistral": _Family(),
    "qwen2": _Family(attention_bias=True),
    "qwen3": _Family(head_norms=True),
    "phi3": _Family(),
    "granite": _Family(),
    "gemma": _Family(tied=True),
    "gemma2": _Family(tied=True, norms=4),
    "smollm3": _Family(tied=True),
    "gpt2": _Family(
        gated=False, grouped=False, biases=True, norm_bias=True, positions=0, tied=True
    ),
    "gpt_neox": _Family(gated=False, grouped=False, biases=True, norm_bias=True),
    "opt": _Family(gated=False, grouped=False, biases=True, norm_bias=True, positions=2, tied=True),
}


def model_from_config(
    name: str, config: Mapping[str, Any], *, seed: int = 0, path: str = "config"
) -> ServedModel:
    """A model of random weights. Raises InputError with every fault of the configuration."""
    sizes, faults = _sizes(config, path)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is not None and not family.grouped and "heads" in sizes:
        sizes["kv_heads"] = sizes["heads"]
    if family is None:
        text = "is required" if "model_type" not in config else (
            f"llem cannot count the parameters of {config['model_type']!r}"
        )  # fmt: skip
        known = list(FAMILIES)
        near = did_you_mean(str(config.get("model_type", "")), known)
        faults.append(Fault(f"{path}.model_type", text, near or f"known: {', '.join(known)}"))
    if faults:
        raise InputError("campaign", faults)
    assert family is not None
    params, rest = _params(sizes, family, config)
    digest = _digest({"config": dict(config), "seed": seed})
    return _model(name, "config", config, sizes, params, rest, digest, seed=seed)


def model_from_folder(name: str, folder: Path, *, path: str = "path") -> ServedModel:
    """A model whose weights are on disk, beside its config.json. Raises InputError."""
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        text = f"{folder}: no model of transformers: config.json cannot be read ({error})"
        raise InputError("campaign", [Fault(path, text)]) from None
    config = {**config, **(config.get("text_config") or {})}
    sizes, faults = _sizes(config, f"{path}/config.json")
    if faults:
        raise InputError("campaign", faults)
    family = FAMILIES.get(str(config.get("model_type")))
    weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not weights:
        raise InputError("campaign", [Fault(path, f"{folder}: no weights: *.safetensors")])
    # A family that llem does not know is counted as a llama, the commonest shape of today.
    params, rest = _params(sizes, family or FAMILIES["llama"], config)
    stored = [_tensors(file, config) for file in weights if file.suffix == ".safetensors"]
    idle = 0.0
    if counted := sum(numbers for numbers, _ in stored):
        params = counted
        idle = _idle_share(config, path) * of if (of := sum(own for _, own in stored)) else 0.0
    digest = _digest(
        {"config": config, "files": [[file.name, file.stat().st_size, _head(file)]
                                     for file in weights]}
    )  # fmt: skip
    return _model(name, "path", config, sizes, params, rest, digest, folder=folder, idle=idle)


def _model(
    name: str,
    source: str,
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    params: int,
    tables: int,
    digest: str,
    *,
    folder: Path | None = None,
    seed: int = 0,
    idle: float = 0.0,
) -> ServedModel:
    """`tables` of the parameters are looked up in or the output's; a token passes `idle` by."""
    within = max(1, params - tables)
    return ServedModel(
        name=name,
        source=source,
        config=config,
        digest=digest,
        params=params,
        params_nonembedding=within,
        layers=sizes["layers"],
        width=sizes["width"],
        heads=sizes["heads"],
        kv_heads=sizes["kv_heads"],
        head_size=sizes["head_size"],
        vocabulary=sizes["vocabulary"],
        context=sizes["context"],
        # A multiply-add of each weight but those of the look-up, and the output layer's.
        flops_per_token_forward=2.0 * (within - idle + sizes["width"] * sizes["vocabulary"]),
        path=str(folder) if folder else None,
        weights_seed=seed,
    )


def _sizes(config: Mapping[str, Any], path: str) -> tuple[dict[str, int], list[Fault]]:
    """The numbers of a configuration, and what is wrong with them."""
    found: dict[str, int] = {}
    faults = []
    for size, names in _NAMES.items():
        given = next((n for n in names if config.get(n) is not None), None)
        if given is None:
            if size in _REQUIRED:
                known = [n for others in _NAMES.values() for n in others]
                strange = [key for key in config if key not in known]
                near = get_close_matches(names[0], strange, n=1)
                hint = f"is {near[0]!r} meant to be it?" if near else None
                faults.append(Fault(f"{path}.{names[0]}", "is required", hint))
            continue
        value = config[given]
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            faults.append(Fault(f"{path}.{given}", f"{value!r} is not a positive whole number"))
            continue
        found[size] = value
    if faults:
        return found, faults
    if "head_size" not in found and found["width"] % found["heads"]:
        text = f"{found['width']} does not divide among {found['heads']} heads"
        return found, [Fault(f"{path}.{_NAMES['width'][0]}", text)]
    found.setdefault("kv_heads", found["heads"])
    found.setdefault("head_size", found["width"] // found["heads"])
    found.setdefault("mlp_width", 4 * found["width"])
    found.setdefault("context", _CONTEXT.get(str(config.get("model_type")), CONTEXT))
    if found["heads"] % found["kv_heads"]:
        text = f"{found['heads']} heads do not divide among {found['kv_heads']} of keys and values"
        faults.append(Fault(f"{path}.{_NAMES['kv_heads'][0]}", text))
    return found, faults


def _params(
    sizes: Mapping[str, int], family: _Family, config: Mapping[str, Any]
) -> tuple[int, int]:
    """All parameters, and those of embedding, position and output tables."""
    width, mlp = sizes["width"], sizes["mlp_width"]
    queries = sizes["heads"] * sizes["head_size"]
    keys = sizes["kv_heads"] * sizes["head_size"]
    attention = width * (queries + 2 * keys) + queries * width
    if family.biases:
        attention += queries + 2 * keys + width
    elif config.get("attention_bias", family.attention_bias):
        attention += queries + 2 * keys
        if not family.attention_bias:
            attention += width
    if family.head_norms:
        attention += 2 * sizes["head_size"]
    matrices = (3 if family.gated else 2) * width * mlp
    if family.biases or config.get("mlp_bias"):
        matrices += (2 * mlp if family.gated else mlp) + width
    norm = width * (2 if family.norm_bias else 1)
    blocks = sizes["layers"] * (attention + matrices + family.norms * norm) + norm
    tied = config.get("tie_word_embeddings", family.tied)
    tables = (1 if tied else 2) * sizes["vocabulary"] * width
    if family.positions is not None:
        tables += (sizes["context"] + family.positions) * width
    return blocks + tables, tables


def _tensors(file: Path, config: Mapping[str, Any]) -> tuple[int, int]:
    """Parameters in a safetensors file, and those of experts among them, from its header: eight
    bytes of length, then JSON."""
    with open(file, "rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    experts = _number(config, _EXPERTS)
    bits = _bits(config)
    found = of_experts = 0
    for name, tensor in header.items():
        if name == "__metadata__" or (bits and _BESIDE.search(name)):
            continue
        shape = tensor["shape"]
        count = math.prod(shape)
        if bits:
            count *= max(1, _PACKED.get(tensor["dtype"], 0) // bits)
        found += count
        if _EXPERT_TENSOR.search(name) or (len(shape) == 3 and shape[0] == experts):
            of_experts += count
    return found, of_experts


def _idle_share(config: Mapping[str, Any], path: str) -> float:
    """The share of all experts that a token does not go through. Raises InputError."""
    experts, used = _number(config, _EXPERTS), _number(config, _PER_TOKEN)
    if experts and used:
        return max(0.0, 1 - used / experts)
    names = (_PER_TOKEN if experts else _EXPERTS)[:2]
    text = f"is required: the weights are those of experts (or {names[1]})"
    raise InputError("campaign", [Fault(f"{path}/config.json.{names[0]}", text)])


def _number(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    """The first of these that is given, in the configuration or its feed-forward part; else 0."""
    inner = config.get("ffn_config")
    for place in (config, inner if isinstance(inner, Mapping) else {}):
        for name in names:
            if isinstance(place.get(name), int):
                return int(place[name])
    return 0


def _bits(config: Mapping[str, Any]) -> int:
    """Bits of a quantised weight; 0 where none is."""
    quantised = config.get("quantization_config")
    if not isinstance(quantised, Mapping):
        return 0
    groups = quantised.get("config_groups")
    inner = [g.get("weights") for g in groups.values()] if isinstance(groups, Mapping) else []
    given = [quantised.get(name) for name in ("bits", "w_bit")]
    given += [weights.get("num_bits") for weights in inner if isinstance(weights, Mapping)]
    eight = quantised.get("load_in_8bit") or "8" in str(quantised.get("quant_method", ""))
    return next((int(bits) for bits in given if bits), 8 if eight else 4)


def _head(file: Path, *, most: int = 1 << 16) -> str:
    """A digest of a file's beginning and end: gigabytes of weights are not read for a name."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        found = hashlib.blake2b(stream.read(most), digest_size=16)
        stream.seek(max(0, size - most))
        found.update(stream.read(most))
    return found.hexdigest()


def _digest(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
