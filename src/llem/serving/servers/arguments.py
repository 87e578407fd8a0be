"""What vLLM and TensorRT-LLM call the options of llem: a table for each, and their command lines.

An option that was not asked for is not on the line: the package's own default holds. Names are of
`vllm.EngineArgs`, where a dot leads into one of its dictionaries, and `vllm.SamplingParams`; of
`tensorrt_llm.llmapi.TorchLlmArgs`, where a dot leads into its `kv_cache_config` and `quant_config`,
and `tensorrt_llm.SamplingParams`. `tests/unit/serving/test_arguments.py` holds them against the
packages where these are installed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FLOATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
# An option of llem's that is itself a part of the command line.
ARGUMENTS = "arguments"


@dataclass(frozen=True)
class Argument:
    """An argument of a package: its name, and its word for each value of llem's where they differ.

    `request` is true of what is sent with each request, and is no argument of the engine. `told` is
    where in its configuration the engine says what it came to. `also` are arguments that go along.
    """

    name: str
    words: Mapping[Any, Any] = field(default_factory=dict)
    request: bool = False
    told: str = ""
    also: Mapping[str, Any] = field(default_factory=dict)

    def value(self, value: Any) -> Any:
        return self.words.get(value, value)

    def back(self, word: Any) -> Any:
        """llem's value for what the engine told; the engine's own word where llem has none."""
        text = str(word).removeprefix("torch.")
        return next((ours for ours, theirs in self.words.items() if theirs == text), word)


# Greedy is a temperature of 0 in both.
_SAMPLING = {
    "sample": Argument("temperature", {False: 0.0}, request=True),
    **{name: Argument(name, request=True)
       for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "ignore_eos")},
}  # fmt: skip

VLLM: Mapping[str, Argument] = {
    "precision": Argument("dtype", FLOATS, told="model_config.dtype"),
    "quantisation": Argument("quantization", told="model_config.quantization"),
    "kv_cache_precision": Argument(
        "kv_cache_dtype", {"bf16": "bfloat16", "fp16": "float16"}, told="cache_config.cache_dtype"
    ),
    "batch_size": Argument("max_num_seqs", told="scheduler_config.max_num_seqs"),
    "batch_tokens": Argument(
        "max_num_batched_tokens", told="scheduler_config.max_num_batched_tokens"
    ),
    "context": Argument("max_model_len", told="model_config.max_model_len"),
    "memory_share": Argument(
        "gpu_memory_utilization", told="cache_config.gpu_memory_utilization"
    ),
    "cache_bytes": Argument("kv_cache_memory_bytes", told="cache_config.kv_cache_memory_bytes"),
    "eager": Argument("enforce_eager", told="model_config.enforce_eager"),
    "optimisation": Argument("optimization_level", told="optimization_level"),
    "cuda_graphs": Argument(
        "compilation_config.cudagraph_mode",
        {"none": "NONE", "piecewise": "PIECEWISE", "full": "FULL",
         "full-decode": "FULL_DECODE_ONLY", "full-and-piecewise": "FULL_AND_PIECEWISE"},
        told="compilation_config.cudagraph_mode",
    ),
    "chunked_prefill": Argument(
        "enable_chunked_prefill", told="scheduler_config.enable_chunked_prefill"
    ),
    "prefix_caching": Argument("enable_prefix_caching", told="cache_config.enable_prefix_caching"),
    "block_size": Argument("block_size", told="cache_config.block_size"),
    "attention": Argument("attention_backend", told="attention_config.backend"),
    "async_scheduling": Argument("async_scheduling", told="scheduler_config.async_scheduling"),
    "stream_interval": Argument("stream_interval", told="scheduler_config.stream_interval"),
    "cpu_offload_gb": Argument("cpu_offload_gb", told="offload_config.uva.cpu_offload_gb"),
    "kv_offload_gb": Argument("kv_offloading_size", told="cache_config.kv_offloading_size"),
    "prompt_lookup_tokens": Argument(
        "speculative_config.num_speculative_tokens",
        told="speculative_config.num_speculative_tokens",
        also={"speculative_config.method": "ngram"},
    ),
    "tensor_parallel": Argument(
        "tensor_parallel_size", told="parallel_config.tensor_parallel_size"
    ),
    "pipeline_parallel": Argument(
        "pipeline_parallel_size", told="parallel_config.pipeline_parallel_size"
    ),
    "expert_parallel": Argument(
        "enable_expert_parallel", told="parallel_config.enable_expert_parallel"
    ),
    **_SAMPLING,
}  # fmt: skip

# What no option asks for and the engine says beside it.
VLLM_FACTS = (
    "model_config.architecture", "cache_config.num_gpu_blocks", "cache_config.kv_cache_size_tokens",
    "compilation_config.mode", "device_config.device_type", "load_config.load_format",
    "parallel_config.data_parallel_size", "parallel_config.distributed_executor_backend",
    "scheduler_config.policy", "speculative_config.method",
)  # fmt: skip

TENSORRT_LLM: Mapping[str, Argument] = {
    "precision": Argument("dtype", FLOATS),
    "quantisation": Argument(
        "quant_config.quant_algo",
        {"fp8": "FP8", "nvfp4": "NVFP4", "w4a16_awq": "W4A16_AWQ", "w8a16": "W8A16",
         "int8_sq": "W8A8_SQ_PER_CHANNEL"},
    ),
    "kv_cache_precision": Argument("kv_cache_config.dtype"),
    "batch_size": Argument("max_batch_size"),
    "batch_tokens": Argument("max_num_tokens"),
    "context": Argument("max_seq_len"),
    "memory_share": Argument("kv_cache_config.free_gpu_memory_fraction"),
    "chunked_prefill": Argument("enable_chunked_prefill"),
    "prefix_caching": Argument("kv_cache_config.enable_block_reuse"),
    "tensor_parallel": Argument("tensor_parallel_size"),
    "pipeline_parallel": Argument("pipeline_parallel_size"),
    **_SAMPLING,
}  # fmt: skip


def engine_arguments(
    table: Mapping[str, Argument], options: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """The engine's arguments for these options, by name; those that are None are left out."""
    found: dict[str, Any] = {}
    for option, argument in table.items():
        if not argument.request and options.get(option) is not None:
            found |= {**argument.also, argument.name: argument.value(options[option])}
    return found


def vllm_command(options: Mapping[str, Any], *, seed: int) -> list[str]:
    """`vllm serve` with these options; {path} and {port} are filled in later."""
    words = ["vllm", "serve", "{path}", "--host", "127.0.0.1", "--port", "{port}"]
    # What a request leaves out is vLLM's own neutral value, not one of the model's folder.
    words += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
    for name, value in engine_arguments(VLLM, options).items():
        group, dot, key = name.partition(".")
        flag = group.replace("_", "-") + dot + key
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", _plain(value)]
    words += ["--seed", str(seed)]
    return words + [_plain(word) for word in shlex.split(str(options.get(ARGUMENTS) or ""))]


def vllm_effective(told: Mapping[str, Any]) -> dict[str, Any]:
    """llem's options by what vLLM told of its configuration; what it does not know is left out."""
    return {
        option: argument.back(told[argument.told])
        for option, argument in VLLM.items()
        if told.get(argument.told) is not None
    }


def tensorrt_command(file: str) -> list[str]:
    """`trtllm-serve` with the options in `file`, which is `tensorrt_settings` as YAML."""
    words = ["trtllm-serve", "{path}", "--host", "127.0.0.1", "--port", "{port}"]
    return [*words, "--backend", "pytorch", "--extra_llm_api_options", _plain(file)]


def tensorrt_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as nested as TensorRT-LLM has them."""
    found: dict[str, Any] = {}
    for name, value in engine_arguments(TENSORRT_LLM, options).items():
        place = found
        *groups, last = name.split(".")
        for group in groups:
            place = place.setdefault(group, {})
        place[last] = value
    return found


def _plain(value: Any) -> str:
    """As a word of a command in which {names} are filled in."""
    return str(value).replace("{", "{{").replace("}", "}}")
