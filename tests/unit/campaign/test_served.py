"""Models counted from their configurations, as transformers builds them."""

import json
import struct

import pytest

from llem.campaign.study.served import FAMILIES, model_from_config, model_from_folder
from llem.errors import InputError

from .studies import TINY

COMMON = {**TINY, "vocab_size": 320, "num_hidden_layers": 3}
GPT2 = {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 320,
        "n_positions": 128}  # fmt: skip
OPT = {"model_type": "opt", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
       "ffn_dim": 256, "vocab_size": 320, "max_position_embeddings": 128,
       "word_embed_proj_dim": 64}  # fmt: skip
# Configurations and the parameters of the model that transformers 5.24 makes of each.
COUNTED = [
    ({**COMMON, "model_type": "llama"}, 179_648),
    ({**COMMON, "model_type": "mistral"}, 179_648),
    ({**COMMON, "model_type": "phi3", "pad_token_id": 0}, 179_648),
    ({**COMMON, "model_type": "granite"}, 179_648),
    ({**COMMON, "model_type": "qwen2"}, 180_032),
    ({**COMMON, "model_type": "qwen3", "head_dim": 32}, 216_704),
    ({**COMMON, "model_type": "gemma", "head_dim": 32}, 196_032),
    ({**COMMON, "model_type": "gemma2", "head_dim": 32}, 196_416),
    ({**COMMON, "model_type": "smollm3", "pad_token_id": 0}, 159_168),
    ({**COMMON, "model_type": "gpt_neox"}, 160_080),
    ({**COMMON, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}, 160_992),
    (GPT2, 178_752),
    (OPT, 178_880),
]


def faults_of(config):
    with pytest.raises(InputError) as caught:
        model_from_config("m", config)
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize(("config", "params"), COUNTED)
def test_parameters_are_counted_to_the_last_one(config, params):
    assert model_from_config("m", config).params == params


@pytest.mark.parametrize(("config", "params"), COUNTED)
def test_and_transformers_itself_counts_the_same(config, params):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    with torch.device("meta"):
        made = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**config)
        )

    assert sum(p.numel() for p in made.parameters()) == params


def test_a_seed_makes_another_model_and_a_name_does_not():
    one = model_from_config("a", TINY)

    assert model_from_config("b", TINY).digest == one.digest
    assert model_from_config("a", TINY, seed=1).digest != one.digest


def test_a_forward_multiplies_every_weight_but_those_that_are_looked_up():
    model = model_from_config("m", TINY)
    output = TINY["hidden_size"] * TINY["vocab_size"]

    assert model.flops_per_token_forward == 2 * (model.params_nonembedding + output)
    assert model.kv_values_per_token == 2 * 2 * 2 * 16


def test_what_a_configuration_lacks_is_told_with_what_may_have_been_meant():
    given = {k: v for k, v in TINY.items() if k != "hidden_size"} | {"hiden_size": 64}

    assert faults_of(given) == ["config.hidden_size: is required (is 'hiden_size' meant to be it?)"]


def test_a_family_that_cannot_be_counted_is_told_with_those_that_can():
    (fault,) = faults_of({**TINY, "model_type": "lama"})

    assert "did you mean 'llama'?" in fault


def test_heads_that_do_not_divide_are_a_fault():
    assert "do not divide" in faults_of({**TINY, "num_key_value_heads": 3})[0]


def _safetensors(place, tensors):
    """Of shapes, or (type, shape)."""
    typed = {name: t if isinstance(t, tuple) else ("F32", t) for name, t in tensors.items()}
    header = json.dumps(
        {name: {"dtype": dtype, "shape": shape, "data_offsets": [0, 0]}
         for name, (dtype, shape) in typed.items()}
    ).encode()  # fmt: skip
    place.write_bytes(struct.pack("<Q", len(header)) + header)


def test_of_weights_on_disk_the_parameters_are_counted_in_their_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    _safetensors(tmp_path / "model-1.safetensors", {"a": [10, 20], "b": [5]})
    _safetensors(tmp_path / "model-2.safetensors", {"c": [7, 3]})

    assert model_from_folder("m", tmp_path).params == 226


MOE = {**TINY, "model_type": "qwen3_moe", "num_experts": 16, "num_experts_per_tok": 2}


@pytest.mark.parametrize("stacked", [False, True])
def test_a_token_goes_through_its_own_experts_alone(tmp_path, stacked):
    """As Qwen3-30B-A3B: all experts are parameters, and a token computes with 2 of 16."""
    width, vocabulary = MOE["hidden_size"], MOE["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps({**MOE, "tie_word_embeddings": True}))
    experts = (
        {"layers.0.mlp.gate_up.weight": [16, 8, width], "layers.0.mlp.down.weight": [16, width, 4]}
        if stacked
        else {f"layers.0.mlp.experts.{e}.{name}.weight": shape for e in range(16)
              for name, shape in (("gate_up", [8, width]), ("down", [width, 4]))}
    )  # fmt: skip
    shared = {"layers.0.mlp.shared_experts.up.weight": [6, width], "layers.0.router": [16, width]}
    table = {"embed_tokens.weight": [vocabulary, width]}
    _safetensors(tmp_path / "model.safetensors", {**table, **shared, **experts})

    model = model_from_folder("m", tmp_path)

    assert model.params == width * (vocabulary + 6 + 16 + 16 * 12)
    assert model.flops_per_token_forward == 2 * width * (vocabulary + 6 + 16 + 2 * 12)


def test_experts_of_which_nobody_tells_how_many_are_used_are_a_fault(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "num_experts": 4}))
    _safetensors(tmp_path / "model.safetensors", {"layers.0.mlp.experts.0.up.weight": [4, 4]})

    with pytest.raises(InputError) as raised:
        model_from_folder("m", tmp_path)

    assert "num_experts_per_tok" in str(raised.value.lines())


GPTQ = {"a.qweight": ("I32", [8, 64]), "a.qzeros": ("I32", [1, 8]), "a.scales": ("F16", [1, 64]),
        "a.g_idx": ("I32", [64])}  # fmt: skip
PACKED = {"a.weight_packed": ("I32", [64, 8]), "a.weight_scale": ("F16", [64, 1]),
          "a.weight_shape": ("I64", [2])}  # fmt: skip
NF4 = {"a.weight": ("U8", [2048, 1]), "a.weight.absmax": ("U8", [64]),
       "a.weight.quant_state.bitsandbytes__nf4": ("U8", [90])}  # fmt: skip
INT8 = {"a.weight": ("I8", [64, 64]), "a.SCB": ("F32", [64]), "a.weight_format": ("U8", [])}


@pytest.mark.parametrize(
    ("quantised", "tensors"),
    [
        ({"quant_method": "gptq", "bits": 4}, GPTQ),
        ({"quant_method": "awq", "w_bit": 4}, GPTQ),
        ({"config_groups": {"g": {"weights": {"num_bits": 4}}}}, PACKED),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, NF4),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, INT8),
    ],
)
def test_packed_weights_are_counted_one_by_one_without_their_scales(tmp_path, quantised, tensors):
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "quantization_config": quantised}))
    _safetensors(tmp_path / "model.safetensors", {**tensors, "norm.weight": [10]})

    assert model_from_folder("m", tmp_path).params == 64 * 64 + 10


def test_other_weights_are_another_model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    _safetensors(tmp_path / "model.safetensors", {"a": [10]})
    before = model_from_folder("m", tmp_path).digest
    _safetensors(tmp_path / "model.safetensors", {"a": [11]})

    assert model_from_folder("m", tmp_path).digest != before


@pytest.mark.parametrize("config", [None, "no json", json.dumps(TINY)])
def test_a_folder_without_configuration_or_weights_is_refused(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)

    with pytest.raises(InputError):
        model_from_folder("m", tmp_path)


def test_every_family_is_among_those_that_are_counted_here():
    assert {config["model_type"] for config, _ in COUNTED} == set(FAMILIES)
