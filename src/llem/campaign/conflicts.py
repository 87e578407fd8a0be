"""Options of a deployment that contradict each other, or what the model is or is asked for.

They are known from the campaign file and the model's configuration alone, so that they are told
before anything is submitted; the backend refuses them too, for whoever calls it without a plan.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llem.campaign.options import ANY, SEVERAL
from llem.campaign.study.deployment import Prompts, ServedModel
from llem.errors import Fault

# Modes of torch.compile that record the kernels of a pass with their addresses.
GRAPHS = ("reduce-overhead", "max-autotune")
# Numbers that share a scale in a quantised cache.
CACHE_GROUP = 64


@dataclass(frozen=True)
class Conflict:
    """Values of options that cannot be had together; the first of them is the one that is told."""

    when: tuple[tuple[str, Container[Any]], ...]
    text: str
    hint: str

    def holds(self, options: Mapping[str, Any]) -> bool:
        return all(options.get(name) in values for name, values in self.when)

    def fault(self) -> Fault:
        return Fault(f"options.{self.when[0][0]}", self.text, self.hint)


TRANSFORMERS = (
    Conflict(
        (("beams", SEVERAL), ("sample", (True,))),
        "a beam search looks for the likeliest text, and sample draws one",
        "sample: false, or beams: 1",
    ),
    Conflict(
        (("beams", SEVERAL), ("prompt_lookup_tokens", ANY)),
        "guessed tokens are checked against one text, and a beam search follows several",
        "beams: 1, or no prompt_lookup_tokens",
    ),
    Conflict(
        (("beams", SEVERAL), ("compile", (True,)), ("compile_mode", GRAPHS)),
        "a beam search moves keys and values after each pass, and CUDA graphs hold their addresses",
        "compile_mode: default",
    ),
    Conflict(
        (("prompt_lookup_tokens", ANY), ("batch_size", SEVERAL)),
        "requests of a batch would need different numbers of their guesses: one at a time",
        "batch_size: 1",
    ),
    Conflict(
        (("prompt_lookup_tokens", ANY), ("kv_cache", (False,))),
        "the keys and values of right guesses are kept in the cache",
        "kv_cache: true",
    ),
    Conflict(
        (("prompt_lookup_tokens", ANY), ("cache", ("quantized",))),
        "wrong guesses are taken out of the cache again, which a quantised one does not allow",
        "cache: dynamic",
    ),
    Conflict(
        (("device_map", ("auto", "balanced", "sequential")), ("tensor_parallel", SEVERAL)),
        "spreads layers, tensor_parallel splits them: one of the two",
        "tensor_parallel: 1, or no device_map",
    ),
    Conflict(
        (("attention", ("flash_attention_2", "flash_attention_3")), ("precision", ("fp32",))),
        "computes in half precision, and precision is fp32",
        "precision: bf16, or attention: sdpa",
    ),
)
CONFLICTS: Mapping[str, tuple[Conflict, ...]] = {"transformers": TRANSFORMERS}


def conflicts(
    backend: str,
    options: Mapping[str, Any],
    *,
    model: ServedModel | None = None,
    prompts: Prompts | None = None,
) -> Iterator[Fault]:
    """The faults of a deployment's effective options; with `model` and `prompts` those too that
    depend on them."""
    for conflict in CONFLICTS.get(backend, ()):
        if conflict.holds(options):
            yield conflict.fault()
    if backend != "transformers":
        return
    if model is not None and options.get("cache") == "quantized":
        width = model.kv_heads * model.head_size
        if width % CACHE_GROUP:
            text = f"a quantised cache has groups of {CACHE_GROUP} numbers, which do not divide "
            text += f"the {width} of a token and layer of {model.name}"
            yield Fault("options.cache", text, "cache: dynamic")
    least = options.get("min_tokens")
    if prompts is not None and least is not None and least > prompts.output_tokens:
        text = f"{least} tokens at least, of {prompts.output_tokens} that are asked for"
        yield Fault("options.min_tokens", text, f"{prompts.output_tokens} at most")
