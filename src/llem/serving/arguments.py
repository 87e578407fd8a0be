"""What vLLM and TensorRT-LLM call the options of llem: a table for each, and their command lines.

An option that was not asked for is not on the line: the package's own default holds. Names are of
`vllm.EngineArgs` and `vllm.SamplingParams`; of `tensorrt_llm.llmapi.TorchLlmArgs`, where a dot
leads into its `kv_cache_config` and `quant_config`, and `tensorrt_llm.SamplingParams`.
`tests/unit/serving/test_arguments.py` holds them against the packages where these are installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FLOATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class Argument:
    """An argument of a package: its name, and its word for each value of llem's where they differ.

    `request` is true of what is sent with each request, and is no argument of the engine.
    """

    name: str
    words: Mapping[Any, Any] = field(default_factory=dict)
    request: bool = False

    def value(self, value: Any) -> Any:
        return self.words.get(value, value)


# Greedy is a temperature of 0 in both.
_SAMPLING = {
    "sample": Argument("temperature", {False: 0.0}, request=True),
    **{name: Argument(name, request=True)
       for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "ignore_eos")},
}  # fmt: skip

VLLM: Mapping[str, Argument] = {
    "precision": Argument("dtype", FLOATS),
    "quantisation": Argument("quantization"),
    "kv_cache_precision": Argument("kv_cache_dtype"),
    "batch_size": Argument("max_num_seqs"),
    "batch_tokens": Argument("max_num_batched_tokens"),
    "context": Argument("max_model_len"),
    "memory_share": Argument("gpu_memory_utilization"),
    "eager": Argument("enforce_eager"),
    "chunked_prefill": Argument("enable_chunked_prefill"),
    "prefix_caching": Argument("enable_prefix_caching"),
    "block_size": Argument("block_size"),
    "attention": Argument("attention_backend"),
    "tensor_parallel": Argument("tensor_parallel_size"),
    "pipeline_parallel": Argument("pipeline_parallel_size"),
    **_SAMPLING,
}

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
    return {
        argument.name: argument.value(options[option])
        for option, argument in table.items()
        if not argument.request and options.get(option) is not None
    }


def vllm_command(options: Mapping[str, Any], *, seed: int) -> list[str]:
    """`vllm serve` with these options; {path} and {port} are filled in later."""
    words = ["vllm", "serve", "{path}", "--host", "127.0.0.1", "--port", "{port}"]
    for name, value in engine_arguments(VLLM, options).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", _plain(value)]
    return [*words, "--seed", str(seed)]


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
