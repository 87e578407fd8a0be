"""The options of each backend that serves models: name, type, and what leaving one out means.

An option that is None is left to the backend. `becomes` is what llem knows the backend does then;
what it really did, the backend tells itself when it has loaded, and the end record keeps.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from llem.errors import Fault, InputError, did_you_mean

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class AtLeast:
    """The whole numbers from `least` on, as what an option needs another to be."""

    least: int

    def __contains__(self, value: object) -> bool:
        return type(value) is int and value >= self.least


ANY, SEVERAL = AtLeast(1), AtLeast(2)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: `kind` is int, float, bool, text or choice (one of `choices`).

    `becomes` is the value where none is asked for, None where llem cannot know it. The option
    means something only where each of `needs` has one of the values named, and is left out of
    what is effective elsewhere: two deployments that differ in it alone are the same.
    """

    name: str
    kind: str
    help: str
    choices: tuple[Any, ...] = ()
    least: float | None = None
    most: float | None = None
    becomes: Any = None
    needs: tuple[tuple[str, Container[Any]], ...] = ()

    def read(self, value: Any) -> Any:
        """The value as the option's own type. Raises ValueError with what is expected."""
        if value is None:
            return None
        if self.kind == "bool":
            if isinstance(value, bool):
                return value
            raise ValueError(f"{value!r} is neither true nor false")
        if self.kind == "choice":
            if any(value == choice and type(value) is type(choice) for choice in self.choices):
                return value
            known = [str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices]
            near = did_you_mean(str(value), known)
            raise ValueError(
                f"{value!r} is not one of {', '.join(known)}" + (f" ({near})" if near else "")
            )
        if self.kind == "text":
            if isinstance(value, str) and value and "\0" not in value:
                return value
            raise ValueError(f"{value!r} is not a text")
        return self._number(value)

    def _number(self, value: Any) -> int | float:
        word = "whole number" if self.kind == "int" else "number"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{value!r} is not a {word}")
        if self.kind == "int" and value != int(value):
            raise ValueError(f"{value!r} is not a whole number")
        if not (self.least is None or value >= self.least):
            raise ValueError(f"{value!r} is below {self.least:g}")
        if not (self.most is None or value <= self.most):
            raise ValueError(f"{value!r} is above {self.most:g}")
        return int(value) if self.kind == "int" else float(value)


def _sampling(**becomes: Any) -> tuple[Option, ...]:
    """How the next token is chosen; greedy unless `sample`."""
    on = (("sample", (True,)),)
    return (
        Option(name="sample", kind="bool", becomes=False,
               help="draw the next token; else the likeliest is taken"),
        Option(name="temperature", kind="float", least=1e-6, most=100, needs=on,
               becomes=becomes.get("temperature", 1.0), help="divides the logits"),
        Option(name="top_k", kind="int", least=1, needs=on, becomes=becomes.get("top_k"),
               help="draw among so many of the likeliest tokens"),
        Option(name="top_p", kind="float", least=1e-6, most=1, needs=on,
               becomes=becomes.get("top_p", 1.0), help="draw among the likeliest of this mass"),
        Option(name="min_p", kind="float", least=0, most=1, needs=on,
               becomes=becomes.get("min_p"), help="least probability, relative to the likeliest"),
        Option(name="repetition_penalty", kind="float", least=1e-6, becomes=1.0,
               help="divides the logits of tokens that were there"),
        Option(name="ignore_eos", kind="bool", becomes=True,
               help="go on to the asked length; false: a text ends where the model ends it"),
    )  # fmt: skip


TRANSFORMERS = (
    Option(name="precision", kind="choice", choices=PRECISIONS,
           help="of weights and activations; null: the model's own"),
    Option(name="quantisation", kind="choice",
           choices=("int8", "nf4", "fp4", "torchao-int8", "torchao-int4", "quanto-int8",
                    "quanto-int4"),
           help="of the weights: int8, nf4 and fp4 by bitsandbytes, the others by what they name"),
    Option(name="double_quantisation", kind="bool", becomes=False,
           needs=(("quantisation", ("nf4", "fp4")),),
           help="quantise the scales of the weights too"),
    Option(name="tf32", kind="bool", becomes=False,
           needs=(("precision", ("fp32",)),),
           help="products of fp32 in TF32, on GPUs that have it"),
    Option(name="batch_size", kind="int", least=1, becomes=1,
           help="most requests in a batch"),
    Option(name="batching", kind="choice", choices=("static", "sorted", "dynamic"),
           becomes="static",
           help="static: as they come; sorted: of like length; dynamic: what has arrived"),
    Option(name="batch_tokens", kind="int", least=1, needs=(("batching", ("dynamic",)),),
           help="most tokens in a batch with its padding, of dynamic batching"),
    Option(name="wait_s", kind="float", least=0, becomes=0.0,
           needs=(("batching", ("dynamic",)),),
           help="how long a request may wait for a batch to fill, seconds"),
    Option(name="attention", kind="choice", becomes="sdpa",
           choices=("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"),
           help="the implementation of attention"),
    Option(name="compile", kind="bool", becomes=False, help="torch.compile the forward pass"),
    Option(name="compile_mode", kind="choice", becomes="default",
           choices=("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
           needs=(("compile", (True,)),), help="the mode of torch.compile"),
    Option(name="compile_backend", kind="text", becomes="inductor",
           needs=(("compile", (True,)),), help="the backend of torch.compile"),
    Option(name="kv_cache", kind="bool", becomes=True,
           help="keep keys and values; false: compute them again for each token"),
    Option(name="cache", kind="choice", choices=("dynamic", "static", "offloaded", "quantized"),
           becomes="dynamic", needs=(("kv_cache", (True,)),), help="how keys and values are kept"),
    Option(name="cache_bits", kind="choice", choices=(2, 4), becomes=4,
           needs=(("cache", ("quantized",)),), help="of a number in a quantised cache"),
    Option(name="beams", kind="int", least=1, becomes=1,
           help="texts that a beam search follows at a time, for each request"),
    Option(name="length_penalty", kind="float", least=-100, most=100, becomes=1.0,
           needs=(("beams", SEVERAL),),
           help="a text's log likelihood is divided by its length to this power"),
    Option(name="early_stopping", kind="choice", choices=(False, True, "never"), becomes=False,
           needs=(("beams", SEVERAL),),
           help="true: a search ends with as many ended texts as beams; false: when it is unlikely "
                "that a better one comes; never: when none can"),
    Option(name="prompt_lookup_tokens", kind="int", least=1,
           help="guess so many tokens from the text so far, and check them in one pass"),
    Option(name="prompt_lookup_ngram", kind="int", least=1, becomes=2,
           needs=(("prompt_lookup_tokens", ANY),),
           help="most tokens at a text's end that are looked up in it"),
    Option(name="tensor_parallel", kind="int", least=1, becomes=1,
           help="GPUs that split each layer of a replica"),
    Option(name="device_map", kind="choice",
           choices=("auto", "balanced", "sequential"),
           help="one process spreads the layers over the GPUs of its node, by accelerate"),
    *_sampling(top_k=50),
    Option(name="typical_p", kind="float", least=1e-6, most=1, becomes=1.0,
           needs=(("sample", (True,)),),
           help="draw among the tokens of this mass whose information is nearest to the expected"),
    Option(name="no_repeat_ngram", kind="int", least=1,
           help="no run of so many tokens comes twice in a text, its prompt included"),
    Option(name="min_tokens", kind="int", least=1, needs=(("ignore_eos", (False,)),),
           help="a text ends after so many tokens at the earliest"),
)  # fmt: skip

_SERVER_SIZES = (
    Option(name="tensor_parallel", kind="int", least=1, becomes=1,
           help="GPUs that split each layer of a replica"),
    Option(name="pipeline_parallel", kind="int", least=1, becomes=1,
           help="groups of GPUs that hold a part of the layers each"),
)  # fmt: skip

VLLM = (
    Option(name="precision", kind="choice", choices=PRECISIONS,
           help="of weights and activations; null: the model's own, a half one for fp32"),
    Option(name="quantisation", kind="text", help="a method that vLLM knows: awq, gptq, fp8, ..."),
    Option(name="kv_cache_precision", kind="choice", becomes="auto",
           choices=("auto", "bf16", "fp16", "fp8", "fp8_e4m3", "fp8_e5m2", "nvfp4"),
           help="of keys and values"),
    Option(name="batch_size", kind="int", least=1, help="most sequences in a step"),
    Option(name="batch_tokens", kind="int", least=1, help="most tokens in a step"),
    Option(name="context", kind="int", least=1, help="most tokens of a sequence"),
    Option(name="memory_share", kind="float", least=0.01, most=1,
           help="of each GPU's memory, for weights and cache"),
    Option(name="cache_bytes", kind="int", least=1,
           help="of keys and values on each GPU, instead of a share of its memory"),
    Option(name="eager", kind="bool", becomes=False, help="without CUDA graphs and compilation"),
    Option(name="optimisation", kind="int", least=0, most=3,
           help="how far it is compiled: vLLM's -O0 to -O3"),
    Option(name="cuda_graphs", kind="choice",
           choices=("none", "piecewise", "full", "full-decode", "full-and-piecewise"),
           help="what of a step is captured as CUDA graphs"),
    Option(name="chunked_prefill", kind="bool", help="long prompts beside decoding, in parts"),
    Option(name="prefix_caching", kind="bool", help="keep what prompts share"),
    Option(name="block_size", kind="int", least=1, help="tokens in a block of the cache"),
    Option(name="attention", kind="text", help="the attention backend"),
    Option(name="async_scheduling", kind="bool", help="plan a step while the one before runs"),
    Option(name="stream_interval", kind="int", least=1,
           help="tokens that are sent together; their times are those of the last"),
    Option(name="cpu_offload_gb", kind="float", least=0,
           help="GiB of each GPU's weights that lie in the host's memory"),
    Option(name="kv_offload_gb", kind="float", least=0.001,
           help="GiB of host memory for keys and values that leave the GPU"),
    Option(name="prompt_lookup_tokens", kind="int", least=1,
           help="guess so many tokens from the prompt, and check them at once (ngram)"),
    Option(name="expert_parallel", kind="bool",
           help="GPUs of a replica hold whole experts instead of parts of all"),
    Option(name="arguments", kind="text",
           help="further words of vllm serve's command line, as they are"),
    *_SERVER_SIZES,
    *_sampling(),
)  # fmt: skip

TENSORRT_LLM = (
    Option(name="precision", kind="choice", choices=PRECISIONS,
           help="of weights and activations; null: the model's own"),
    Option(name="quantisation", kind="choice",
           choices=("fp8", "nvfp4", "w4a16_awq", "w8a16", "int8_sq"), help="of the weights"),
    Option(name="kv_cache_precision", kind="choice", choices=("auto", "fp8", "int8"),
           becomes="auto", help="of keys and values"),
    Option(name="batch_size", kind="int", least=1, help="most sequences in a step"),
    Option(name="batch_tokens", kind="int", least=1, help="most tokens in a step"),
    Option(name="context", kind="int", least=1, help="most tokens of a sequence"),
    Option(name="memory_share", kind="float", least=0.01, most=1, becomes=0.9,
           help="of the GPU's memory that is free after loading, for the cache"),
    Option(name="chunked_prefill", kind="bool", becomes=False,
           help="long prompts beside decoding, in parts"),
    Option(name="prefix_caching", kind="bool", becomes=True, help="keep what prompts share"),
    *_SERVER_SIZES,
    *_sampling(),
)  # fmt: skip

OPENAI = (
    Option(name="command", kind="text",
           help="starts the server in the job; {path}, {port} and {gpus} are filled in"),
    Option(name="batch_size", kind="int", least=1, becomes=1,
           help="requests that are under way at one time, with arrival: batch"),
    Option(name="ready_s", kind="float", least=1, becomes=600.0,
           help="how long the server may take to answer, seconds"),
    *_SERVER_SIZES,
    *_sampling(),
)  # fmt: skip

OWN: Mapping[str, tuple[Option, ...]] = {
    "transformers": TRANSFORMERS,
    "vllm": VLLM,
    "tensorrt-llm": TENSORRT_LLM,
    "openai": OPENAI,
}
# Entry points of other packages' backends; what one names has its `options`.
GROUP = "llem.backends"


class _Backends(Mapping[str, Mapping[str, Option]]):
    """The options of each backend by name: llem's own, and other packages' when they are asked for.

    Raises InputError for one whose package cannot be imported, or tells no options.
    """

    def __init__(self) -> None:
        self._read = {name: {o.name: o for o in options} for name, options in OWN.items()}

    def __getitem__(self, name: str) -> Mapping[str, Option]:
        if name not in self._read:
            self._read[name] = {o.name: o for o in _options_of(backends_of_others()[name])}
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._read or name in backends_of_others()

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*OWN, *sorted(backends_of_others())]))

    def __len__(self) -> int:
        return len(list(iter(self)))


def backends_of_others() -> dict[str, metadata.EntryPoint]:
    """The backends that other packages have installed, by name."""
    return {point.name: point for point in metadata.entry_points(group=GROUP)}


def _options_of(point: metadata.EntryPoint) -> tuple[Option, ...]:
    try:
        return tuple(point.load().options)
    except (ImportError, AttributeError) as error:
        text = f"{point.name}: {point.value} cannot be asked for its options: {error}"
        raise InputError("campaign", [Fault("backend", text)]) from error


BACKENDS: Mapping[str, Mapping[str, Option]] = _Backends()


def check_backend(name: str) -> str:
    """The name of a backend that there is. Raises ValueError."""
    if name in BACKENDS:
        return name
    near = did_you_mean(name, list(BACKENDS))
    raise ValueError(
        f"{name!r} is not one of {', '.join(BACKENDS)}" + (f" ({near})" if near else "")
    )


def unknown_option(backends: tuple[str, ...], name: str, *, path: str) -> Fault:
    """The fault of an option that none of the `backends` has, with the nearest that there is."""
    known = sorted({option for backend in backends for option in BACKENDS[backend]})
    hint = did_you_mean(name, known) or f"known options: {', '.join(known)}"
    return Fault(path, f"{' and '.join(backends)} has no option {name!r}", hint)


def effective_options(
    backend: str, asked: Mapping[str, Any], *, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What llem knows the asked options become: the backend's defaults filled in.

    Left out is what nobody can know before it runs, and what means nothing beside the others
    (a temperature without sampling). `config` is the model's, which says its own precision.
    """
    found: dict[str, Any] = {}
    for name, option in BACKENDS[backend].items():
        value = asked.get(name)
        if value is None:
            value = option.becomes
        if name == "precision" and value is None:
            value = own_precision(backend, config)
        if value is not None:
            found[name] = value
    for name, option in BACKENDS[backend].items():
        if name in found and any(found.get(other) not in values for other, values in option.needs):
            del found[name]
    return found


def own_precision(backend: str, config: Mapping[str, Any]) -> str | None:
    """The precision that a model is served in where none is asked for; None: the device decides."""
    named = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    own = {"bfloat16": "bf16", "float16": "fp16"}.get(named.removeprefix("torch."), "fp32")
    # vLLM serves a model of fp32 in the half precision that the GPU has.
    return None if backend == "vllm" and own == "fp32" else own
