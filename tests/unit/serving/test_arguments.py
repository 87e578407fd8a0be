"""The options of vLLM and TensorRT-LLM under these packages' own names."""

import dataclasses
import inspect
import json

import pytest

from llem.campaign.options import BACKENDS
from llem.serving.servers.arguments import (
    ARGUMENTS,
    TENSORRT_LLM,
    VLLM,
    VLLM_FACTS,
    engine_arguments,
    tensorrt_command,
    tensorrt_settings,
    vllm_command,
    vllm_effective,
)

TABLES = {"vllm": VLLM, "tensorrt-llm": TENSORRT_LLM}


@pytest.mark.parametrize("backend", TABLES)
def test_every_option_has_an_argument_and_every_argument_an_option(backend):
    # what is a part of the command line as it is has no argument of its own
    assert set(TABLES[backend]) == set(BACKENDS[backend]) - {ARGUMENTS}


@pytest.mark.parametrize("backend", TABLES)
def test_words_are_for_values_that_the_option_has(backend):
    for name, argument in TABLES[backend].items():
        choices = BACKENDS[backend][name].choices
        assert set(argument.words) <= {*choices, True, False}
        # where some are the package's own words, the others have one of theirs
        own = {"auto", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"}
        assert not argument.words or name == "sample" or set(choices) - own <= set(argument.words)


def test_a_command_line_of_vllm_has_what_was_asked_for_and_no_more():
    assert vllm_command({"precision": None}, seed=0) == [
        "vllm", "serve", "{path}", "--host", "127.0.0.1", "--port", "{port}",
        "--generation-config", "vllm", "--disable-uvicorn-access-log", "--seed", "0",
    ]  # fmt: skip
    asked = {
        "precision": "bf16", "quantisation": "fp8", "batch_size": 64, "memory_share": 0.8,
        "eager": True, "prefix_caching": False, "tensor_parallel": 2, "temperature": 0.7,
        "sample": True, "prompt_lookup_tokens": 4, "cuda_graphs": "full-decode",
        "arguments": "--scheduling-policy priority -cc '{\"mode\": 3}'",
    }  # fmt: skip
    assert vllm_command(asked, seed=3)[10:] == [
        "--dtype", "bfloat16", "--quantization", "fp8", "--max-num-seqs", "64",
        "--gpu-memory-utilization", "0.8", "--enforce-eager",
        "--compilation-config.cudagraph_mode", "FULL_DECODE_ONLY", "--no-enable-prefix-caching",
        "--speculative-config.method", "ngram",
        "--speculative-config.num_speculative_tokens", "4", "--tensor-parallel-size", "2",
        "--seed", "3", "--scheduling-policy", "priority", "-cc", '{{"mode": 3}}',
    ]  # fmt: skip


def test_what_vllm_told_is_read_back_as_llems_own_options():
    told = {
        "model_config.dtype": "torch.float32", "cache_config.cache_dtype": "bfloat16",
        "scheduler_config.max_num_seqs": 256, "cache_config.enable_prefix_caching": False,
        "model_config.quantization": None, "compilation_config.cudagraph_mode": "NONE",
        "cache_config.num_gpu_blocks": 5,
    }  # fmt: skip
    assert vllm_effective(told) == {
        "precision": "fp32", "kv_cache_precision": "bf16", "batch_size": 256,
        "prefix_caching": False, "cuda_graphs": "none",
    }  # fmt: skip


def test_settings_of_tensorrt_llm_are_nested_as_its_own():
    asked = {
        "precision": "fp16", "quantisation": "int8_sq", "kv_cache_precision": "fp8",
        "memory_share": 0.7, "prefix_caching": True, "batch_size": 8, "context": 2048,
        "top_k": 5, "sample": True,
    }  # fmt: skip
    assert tensorrt_settings(asked) == {
        "dtype": "float16",
        "quant_config": {"quant_algo": "W8A8_SQ_PER_CHANNEL"},
        "kv_cache_config": {
            "dtype": "fp8", "free_gpu_memory_fraction": 0.7, "enable_block_reuse": True,
        },
        "max_batch_size": 8,
        "max_seq_len": 2048,
    }  # fmt: skip
    assert tensorrt_command("a{b}.yaml")[-2:] == ["--extra_llm_api_options", "a{{b}}.yaml"]


# Against the packages themselves


def names_of(table, *, request):
    return {argument.name for argument in table.values() if argument.request == request}


def test_vllm_has_every_argument():
    vllm = pytest.importorskip("vllm", reason="vllm is not installed")
    known = {field.name for field in dataclasses.fields(vllm.EngineArgs)}
    names = names_of(VLLM, request=False) | {n for a in VLLM.values() for n in a.also}
    assert {name.partition(".")[0] for name in names} <= known
    assert names_of(VLLM, request=True) <= set(inspect.signature(vllm.SamplingParams).parameters)


def test_vllm_reads_the_command_line_as_it_was_meant():
    pytest.importorskip("vllm", reason="vllm is not installed")
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    try:
        from vllm.entrypoints.launchers.cli_args import make_arg_parser
    except ImportError:  # before 0.32
        from vllm.entrypoints.openai.cli_args import make_arg_parser

    parser = make_arg_parser(FlexibleArgumentParser())
    values = {"int": 2, "float": 0.5, "bool": False}
    texts = {"quantisation": "fp8", "attention": "FLASH_ATTN", "arguments": "--max-logprobs 3"}
    for name, option in BACKENDS["vllm"].items():
        if name != ARGUMENTS and VLLM[name].request:
            continue
        choices = option.choices or (texts.get(name, values.get(option.kind)),)
        for value in (*choices, *([True] if option.kind == "bool" else [])):
            asked = {name: value}
            words = [word.format(path="m", port=1) for word in vllm_command(asked, seed=3)]
            parsed = parser.parse_args(words[3:])
            assert (parsed.seed, parsed.generation_config) == (3, "vllm")
            for argument, word in engine_arguments(VLLM, asked).items():
                group, _, key = argument.partition(".")
                found = getattr(parsed, group)
                if key:
                    found = found[key] if isinstance(found, dict) else getattr(found, key)
                assert str(getattr(found, "name", found)) == str(word), name
            if name == ARGUMENTS:
                assert parsed.max_logprobs == 3


def test_vllms_configuration_has_every_place_that_is_asked():
    vllm = pytest.importorskip("vllm", reason="vllm is not installed")
    from vllm.config import VllmConfig

    for name in [argument.told for argument in VLLM.values() if argument.told] + [*VLLM_FACTS]:
        cls = VllmConfig
        for part in name.split("."):
            known = {f.name: f.type for f in dataclasses.fields(cls)}
            assert part in known or hasattr(cls, part), f"{vllm.__version__} has no {name}"
            text = str(getattr(known.get(part), "__name__", known.get(part)))
            cls = next((c for c in _configs() if c.__name__ in text), None)


def _configs():
    import vllm.config as config
    from vllm.config.offload import UVAOffloadConfig

    found = [getattr(config, name) for name in dir(config) if name.endswith("Config")]
    return [UVAOffloadConfig, *sorted(found, key=lambda c: -len(c.__name__))]


def test_tensorrt_llm_has_every_argument():
    pytest.importorskip("tensorrt_llm", reason="tensorrt_llm is not installed")
    from tensorrt_llm import SamplingParams
    from tensorrt_llm.llmapi import KvCacheConfig, QuantAlgo, QuantConfig, TorchLlmArgs

    groups = {"": TorchLlmArgs, "kv_cache_config": KvCacheConfig}
    for name in names_of(TENSORRT_LLM, request=False):
        group, _, last = name.rpartition(".")
        if group == "quant_config":
            assert last in inspect.signature(QuantConfig).parameters
        else:
            assert last in groups[group].model_fields
    assert set(TENSORRT_LLM["quantisation"].words.values()) <= set(QuantAlgo.__members__)
    assert names_of(TENSORRT_LLM, request=True) <= set(inspect.signature(SamplingParams).parameters)
    json.dumps(tensorrt_settings({"quantisation": "fp8"}))
