"""What transformers can do here: the packages, devices and compilers that options need, and what
it is told for each kind of quantised weights."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from llem.errors import Fault, did_you_mean

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
# What each kind of quantised weights needs, and what installs it.
QUANTISERS: Mapping[str, tuple[Sequence[str], str]] = {
    "int8": (("bitsandbytes", "accelerate"), "bitsandbytes accelerate"),
    "nf4": (("bitsandbytes", "accelerate"), "bitsandbytes accelerate"),
    "fp4": (("bitsandbytes", "accelerate"), "bitsandbytes accelerate"),
    "torchao-int8": (("torchao", "accelerate"), "torchao accelerate"),
    "torchao-int4": (("torchao", "accelerate"), "torchao accelerate"),
    "quanto-int8": (("optimum.quanto", "accelerate"), "optimum-quanto accelerate"),
    "quanto-int4": (("optimum.quanto", "accelerate"), "optimum-quanto accelerate"),
}
COMPILERS = ("g++", "clang++", "c++")


def installed(package: str) -> bool:
    """Whether a package can be imported; nothing of it is, but the package that it lies in."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def missing_abilities(options: Mapping[str, Any], *, cuda: bool) -> Iterator[Fault]:
    """What of the effective options cannot be had here, known before anything is loaded."""

    def lacking(option: str, packages: Sequence[str], install: str) -> Iterator[Fault]:
        for package in packages:
            if not installed(package):
                text = f"{options[option]!r} needs {package}, which is not installed"
                yield Fault(f"options.{option}", text, f"pip install {install}")

    def gpus_only(option: str, text: str, hint: str) -> Iterator[Fault]:
        if not cuda:
            yield Fault(f"options.{option}", text, hint)

    quantised = options.get("quantisation")
    if quantised is not None:
        yield from lacking("quantisation", *QUANTISERS[str(quantised)])
    if quantised == "torchao-int4":
        text = f"{quantised!r} runs on GPUs only"
        yield from gpus_only("quantisation", text, "torchao-int8, quanto-int4")
    attention = options.get("attention")
    if attention in FLASH and not cuda:
        text = f"{attention!r} runs on GPUs only"
        yield from gpus_only("attention", text, "sdpa or eager")
    elif attention in FLASH and not (installed(FLASH[attention]) or installed("kernels")):
        text = f"{attention!r} needs {FLASH[attention]} or kernels, which is not installed"
        yield Fault("options.attention", text, f"pip install {FLASH[attention]}")
    if options.get("cache") == "quantized":
        yield from lacking("cache", ("optimum.quanto",), "optimum-quanto")
    if options.get("cache") == "offloaded":
        text = "'offloaded' moves keys and values between a GPU and its host; here is no GPU"
        yield from gpus_only("cache", text, "dynamic")
    if options.get("tf32"):
        yield from gpus_only("tf32", "TF32 is of GPUs; here is none", "leave it out")
    if options.get("device_map"):
        yield from lacking("device_map", ("accelerate",), "accelerate")
    if options.get("compile"):
        yield from _compiling(str(options.get("compile_backend") or "inductor"))


def _compiling(backend: str) -> Iterator[Fault]:
    if backend == "inductor":
        if not any(map(shutil.which, [os.environ.get("CXX") or "g++", *COMPILERS])):
            text = "torch.compile makes C++, and there is no compiler here"
            hint = f"one of {', '.join(COMPILERS)} in the image, or compile: false"
            yield Fault("options.compile", text, hint)
        return
    import torch._dynamo

    known = sorted({"inductor", *torch._dynamo.list_backends(exclude_tags=())})
    if backend not in known:
        text = f"torch.compile has no backend {backend!r}"
        hint = did_you_mean(backend, known) or f"there are: {', '.join(known)}"
        yield Fault("options.compile_backend", text, hint)


def quantising(options: Mapping[str, Any], precision: str | None) -> dict[str, Any]:
    """What tells transformers to quantise the weights that it reads."""
    kind = options.get("quantisation")
    if not kind:
        return {}
    made = _quantiser(str(kind), precision, double=bool(options.get("double_quantisation")))
    return {"quantization_config": made}


def _quantiser(kind: str, precision: str | None, *, double: bool) -> Any:
    if kind.startswith("torchao-"):
        from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(
            Int8WeightOnlyConfig() if kind == "torchao-int8" else Int4WeightOnlyConfig()
        )
    if kind.startswith("quanto-"):
        from transformers import QuantoConfig

        return QuantoConfig(weights=kind.removeprefix("quanto-"))
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=getattr(torch, PRECISIONS[precision or "bf16"]),
    )
