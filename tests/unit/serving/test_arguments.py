"""The options of vLLM and TensorRT-LLM under these packages' own names."""

import dataclasses
import inspect
import json

import pytest

from llem.campaign.options import BACKENDS
from llem.serving.arguments import (
    TENSORRT_LLM,
    VLLM,
    engine_arguments,
    tensorrt_command,
    tensorrt_settings,
    vllm_command,
)

TABLES = {"vllm": VLLM, "tensorrt-llm": TENSORRT_LLM}


@pytest.mark.parametrize("backend", TABLES)
def test_every_option_has_an_argument_and_every_argument_an_option(backend):
    assert set(TABLES[backend]) == set(BACKENDS[backend])


@pytest.mark.parametrize("backend", TABLES)
def test_words_are_for_values_that_the_option_has(backend):
    for name, argument in TABLES[backend].items():
        choices = BACKENDS[backend][name].choices
        assert set(argument.words) <= {*choices, True, False}
        assert not argument.words or name == "sample" or set(argument.words) == set(choices)


def test_a_command_line_of_vllm_has_what_was_asked_for_and_no_more():
    assert vllm_command({"precision": None}, seed=0) == [
        "vllm", "serve", "{path}", "--host", "127.0.0.1", "--port", "{port}", "--seed", "0",
    ]  # fmt: skip
    asked = {
        "precision": "bf16", "quantisation": "fp8", "batch_size": 64, "memory_share": 0.8,
        "eager": True, "prefix_caching": False, "tensor_parallel": 2, "temperature": 0.7,
        "sample": True,
    }  # fmt: skip
    assert " ".join(vllm_command(asked, seed=3)) == (
        "vllm serve {path} --host 127.0.0.1 --port {port} --dtype bfloat16 --quantization fp8 "
        "--max-num-seqs 64 --gpu-memory-utilization 0.8 --enforce-eager "
        "--no-enable-prefix-caching --tensor-parallel-size 2 --seed 3"
    )


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
    assert names_of(VLLM, request=False) <= known
    assert names_of(VLLM, request=True) <= set(inspect.signature(vllm.SamplingParams).parameters)


def test_vllm_reads_the_command_line_as_it_was_meant():
    pytest.importorskip("vllm", reason="vllm is not installed")
    from vllm import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    asked = {
        "precision": "bf16", "batch_size": 64, "memory_share": 0.8, "eager": True,
        "prefix_caching": False, "chunked_prefill": True, "tensor_parallel": 2, "context": 512,
    }  # fmt: skip
    parsed = EngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(
        vllm_command(asked, seed=3)[7:]
    )
    for name, value in engine_arguments(VLLM, asked).items():
        assert getattr(parsed, name) == value


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
