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
    header = json.dumps(
        {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
         for name, shape in tensors.items()}
    ).encode()  # fmt: skip
    place.write_bytes(struct.pack("<Q", len(header)) + header)


def test_of_weights_on_disk_the_parameters_are_counted_in_their_files(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    _safetensors(tmp_path / "model-1.safetensors", {"a": [10, 20], "b": [5]})
    _safetensors(tmp_path / "model-2.safetensors", {"c": [7, 3]})

    assert model_from_folder("m", tmp_path).params == 226


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
