"""How long a deployment takes, and how much memory: its passes, its start, its warm-up.

Prefill computes all tokens of a prompt at once; decode reads weights and KV cache once for each
token (arXiv 2211.05102, section 2). What a pass takes is `llem.planning.study.law`'s to say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llem.campaign import Deployment, Predicted, ServedModel, Warmup
from llem.planning.hardware import Accelerator
from llem.planning.study.law import Passes, ServingLaw

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
QUANTISED = {"int8": 1.0, "nf4": 0.56, "fp4": 0.56, "fp8": 1.0, "nvfp4": 0.56, "w8a16": 1.0,
             "int8_sq": 1.0, "w4a16_awq": 0.56, "awq": 0.56, "gptq": 0.56, "torchao-int8": 1.0,
             "torchao-int4": 0.56, "quanto-int8": 1.0, "quanto-int4": 0.56}  # fmt: skip
# A quantised cache of transformers keeps a scale and a zero for each group of 64 numbers, and the
# newest tokens, up to so many, as they are.
SCALES = 2 / 64
RESIDUAL_TOKENS = 128
# Sequences in a step of a server that was given no limit.
SERVER_BATCH = 256
# Random weights are drawn on the host in fp32, so many bytes a second.
RANDOM_BYTES_PER_S = 1.4e8
# Tensors of a forward besides weights and cache, as multiples of the residual stream; of the cache,
# what is held while it grows. Those of the CPU were fitted to measured peaks, with all that its
# allocator keeps: `tests/benchmarks/serving_time.py`.
ACTIVATIONS_GPU, ACTIVATIONS_CPU = 12, 24
GROWING_GPU, GROWING_CPU = 1.05, 1.25
LEAST_CPU = 4e6
# Weights of a configuration are made in fp32 on the CPU, and lie there while they are converted.
CONVERTED = 1.15
STANDING_GPU, STANDING_CPU = 1.5e9, 0.4e9


@dataclass(frozen=True, kw_only=True)
class ServingMemory:
    """Bytes on one rank: weights, the KV cache of a full batch, the tensors of a prefill; and
    `loading`, what stands at most before anything is served."""

    weights: float
    cache: float
    activations: float
    loading: float
    standing: float

    @property
    def of_run(self) -> float:
        return max(self.loading, self.weights + self.cache + self.activations)

    @property
    def total(self) -> float:
        """What the device must have."""
        return self.of_run + self.standing


def value_bytes(deployment: Deployment) -> float:
    """Bytes of a value that is not quantised: in the cache, in activations."""
    return BYTES[precision_of(deployment)]


def precision_of(deployment: Deployment) -> str:
    """What is computed in."""
    return str(deployment.effective.get("precision") or "bf16")


def weight_bytes(deployment: Deployment) -> float:
    """Bytes of all weights of one replica; embedding tables are not quantised."""
    model, each = deployment.model, value_bytes(deployment)
    within = QUANTISED.get(str(deployment.effective.get("quantisation")), each)
    return model.params_nonembedding * within + (model.params - model.params_nonembedding) * each


def batch_of(deployment: Deployment) -> int:
    """Sequences that a replica has under way together, at most."""
    asked = deployment.effective.get("batch_size") or SERVER_BATCH
    return max(1, min(int(asked), math.ceil(deployment.prompts.count / deployment.replicas)))


def memory_of_serving(
    deployment: Deployment, device: Accelerator, *, factor: float = 1.0
) -> ServingMemory:
    """The peak of one rank, at a full batch of full length.

    `factor` is what measured peaks are of predicted ones, where any were measured.
    """
    model, prompts, each = deployment.model, deployment.prompts, value_bytes(deployment)
    parts = deployment.ranks_per_replica
    batch = batch_of(deployment) * int(deployment.effective.get("beams") or 1)
    length = prompts.mean_input_tokens + prompts.output_tokens
    cached = 0.0 if deployment.effective.get("kv_cache") is False else length
    tokens = batch * (prompts.mean_input_tokens if cached else length)
    growing = GROWING_CPU if device.cpu else GROWING_GPU
    if deployment.effective.get("cache") == "static":
        growing = 1.0
    if deployment.effective.get("cache") == "quantized":
        kept = min(cached, float(RESIDUAL_TOKENS))
        bits = int(deployment.effective.get("cache_bits") or 4)
        cached = kept + (cached - kept) * (bits / 8 / each + SCALES)
    made = device.cpu and model.source == "config" and each < BYTES["fp32"]
    passed = ACTIVATIONS_CPU if device.cpu else ACTIVATIONS_GPU
    return ServingMemory(
        weights=factor * weight_bytes(deployment) / parts,
        cache=factor * growing * batch * cached * model.kv_values_per_token * each / parts,
        # The logits of the last token are had in fp32 too.
        activations=factor * (passed * tokens * model.width * each
                              + batch * model.vocabulary * (each + 4)
                              + (LEAST_CPU if device.cpu else 0.0)),
        loading=factor * CONVERTED * BYTES["fp32"] * model.params if made else 0.0,
        standing=STANDING_CPU if device.cpu else STANDING_GPU,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Course:
    """Seconds of one run, part by part; `start_s`, that of its backend, is the element's."""

    start_s: float
    cooldown_s: float
    load_s: float
    warmup_s: float
    window_s: float

    @property
    def run_s(self) -> float:
        return self.cooldown_s + self.load_s + self.warmup_s + self.window_s


def course_of(
    deployment: Deployment, *, law: ServingLaw, warmup: Warmup, cooldown_s: float = 0.0
) -> Course:
    """How one cycle is expected to go."""
    batch = batch_of(deployment)
    seconds = batch_s(deployment, batch, law)
    window = served_s(deployment, law)
    if deployment.arrival.rate:
        window = max(window, deployment.prompts.count / deployment.arrival.rate)
    rounds = min(float(warmup.most), max(float(warmup.least), law.warmup_rounds))
    return Course(
        start_s=law.start_s,
        cooldown_s=cooldown_s,
        load_s=law.load_s + weights_s(deployment, law),
        warmup_s=max(rounds * seconds, warmup.floor_s),
        window_s=window,
    )


def weights_s(deployment: Deployment, law: ServingLaw) -> float:
    """Seconds to read the weights, or to make random ones."""
    model = deployment.model
    if model.source == "config":
        return BYTES["fp32"] * model.params / RANDOM_BYTES_PER_S * law.load
    return weight_bytes(deployment) / law.load_bytes * law.load


def predict(
    deployment: Deployment,
    *,
    device: Accelerator,
    law: ServingLaw,
    warmup: Warmup,
    cooldown_s: float = 0.0,
) -> Predicted:
    """What one cycle is expected to take: loading, warm-up and all requests.

    The energy of waiting and loading is counted as that of work: an upper bound. The start of the
    element and of its backend are not in it.
    """
    duration = course_of(deployment, law=law, warmup=warmup, cooldown_s=cooldown_s).run_s
    device_s = duration * deployment.layout.ranks
    return Predicted(
        duration_s=duration,
        gpu_hours=device_s / 3600,
        energy_j=device_s * law.power_w,
        memory_bytes=memory_of_serving(deployment, device, factor=law.memory).of_run,
    )


def served_s(deployment: Deployment, law: ServingLaw) -> float:
    """Seconds to serve all requests of a replica's share, where they wait in a queue: full
    batches, and one of what is left over."""
    share = math.ceil(deployment.prompts.count / deployment.replicas)
    full, rest = divmod(share, batch_of(deployment))
    seconds = full * batch_s(deployment, batch_of(deployment), law) if full else 0.0
    return seconds + (batch_s(deployment, rest, law) if rest else 0.0)


def batch_s(deployment: Deployment, batch: int, law: ServingLaw) -> float:
    """Seconds to serve one batch: its prefill, then a forward for each further token."""
    return sum(
        law.seconds(work, precision=precision_of(deployment), graphs=with_graphs(deployment))
        for work in batch_passes(deployment, batch)
    )


def with_graphs(deployment: Deployment) -> bool:
    """Whether the kernels of a pass are launched together (CUDA graphs)."""
    if deployment.backend != "transformers":
        return not deployment.effective.get("eager")
    return deployment.effective.get("compile_mode") in ("reduce-overhead", "max-autotune")


def batch_passes(deployment: Deployment, batch: int) -> tuple[Passes, Passes]:
    """The passes of one batch: its prefill, and all of its decoding."""
    prompts = deployment.prompts
    before, after = prompts.mean_input_tokens, prompts.output_tokens - 1
    length = before + (after + 1) / 2
    sequences = batch * int(deployment.effective.get("beams") or 1)
    prefill = prompt_pass(deployment, sequences, before)
    if deployment.effective.get("kv_cache") is False:
        # Every token computes the whole text again.
        return prefill, prompt_pass(deployment, sequences, length) * after
    return prefill, decode_pass(deployment, sequences, length) * after


def prompt_pass(deployment: Deployment, sequences: float, tokens: float) -> Passes:
    """One pass over prompts of `tokens` each."""
    return _pass(
        deployment, rows=sequences * tokens, last=sequences, context=(tokens + 1) / 2, cached=0.0
    )


def decode_pass(deployment: Deployment, sequences: float, length: float) -> Passes:
    """One pass over a token of each sequence, `length` tokens after its beginning."""
    return _pass(
        deployment, rows=sequences, last=sequences, context=length, cached=sequences * length
    )


def _pass(
    deployment: Deployment, *, rows: float, last: float, context: float, cached: float
) -> Passes:
    """One pass over `rows` tokens, each attending to `context`; `cached` are read from the cache,
    and of the `last` the logits are wanted."""
    model, each, parts = deployment.model, value_bytes(deployment), deployment.ranks_per_replica
    head = model.width * model.vocabulary
    # The table of embeddings is looked up in; that of the output is multiplied with.
    table = max(0.0, model.params - model.params_nonembedding - head) * each
    inner = _inner_flops(model, head)
    return Passes(
        passes=1.0,
        layers=float(model.layers),
        weights=max(0.0, weight_bytes(deployment) - table) / parts,
        cache=cached * model.kv_values_per_token * each / parts,
        flops=(rows * inner + last * 2.0 * head) / parts,
        attention=4.0 * model.layers * model.heads * model.head_size * context * rows / parts,
        activations=rows * model.width * model.layers * each / parts,
    )


def _inner_flops(model: ServedModel, head: float) -> float:
    """FLOPs of a token in all layers, without the output's."""
    return max(0.0, model.flops_per_token_forward - 2.0 * head)
