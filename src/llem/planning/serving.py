"""How long a deployment takes, and how much memory: a roofline of prefill and decode.

A forward takes the longer of its arithmetic and its traffic to memory (Williams, Waterman and
Patterson, Commun. ACM 52(4), 65, 2009), and an overhead that does not depend on its size. Prefill
computes all tokens of a prompt at once; decode reads weights and KV cache once for each token
(arXiv 2211.05102, section 2). All of it is a prior, until runs have been made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llem.campaign import Deployment, Predicted, ServedModel, Warmup
from llem.planning.hardware import Accelerator, bandwidth_of

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0}
QUANTISED = {"int8": 1.0, "nf4": 0.56, "fp4": 0.56, "fp8": 1.0, "nvfp4": 0.56, "w8a16": 1.0,
             "int8_sq": 1.0, "w4a16_awq": 0.56, "awq": 0.56, "gptq": 0.56}  # fmt: skip
# Products in fp32 without tensor cores, as torch computes them, beside bf16 with them.
FP32_RATE = 1 / 16
# What a stream of reads gets of the memory's peak.
MEMORY_UTILISATION = 0.7
# Seconds of a forward besides: Python and kernel launches of each layer; with CUDA graphs less.
LAYER_S, FORWARD_S = 5e-4, 2e-3
GRAPH_LAYER_S, GRAPH_FORWARD_S = 3e-5, 1e-3
# Seconds to start a backend, and bytes of weights that it reads a second.
START_S = {"transformers": 5.0, "vllm": 60.0, "tensorrt-llm": 90.0, "openai": 60.0}
CPU_START_S = 1.0
LOAD_BYTES_PER_S = 1e9
# Sequences in a step of a server that was given no limit.
SERVER_BATCH = 256
# Tensors of a forward besides weights and cache, as multiples of the residual stream.
ACTIVATIONS = 8
STANDING_GPU, STANDING_CPU = 1.5e9, 0.4e9


@dataclass(frozen=True, kw_only=True)
class ServingMemory:
    """Bytes on one rank: weights, the KV cache of a full batch, the tensors of a prefill."""

    weights: float
    cache: float
    activations: float
    standing: float

    @property
    def of_run(self) -> float:
        return self.weights + self.cache + self.activations

    @property
    def total(self) -> float:
        """What the device must have."""
        return self.of_run + self.standing


def value_bytes(deployment: Deployment) -> float:
    """Bytes of a value that is not quantised: in the cache, in activations."""
    return BYTES[deployment.effective.get("precision") or "bf16"]


def weight_bytes(deployment: Deployment) -> float:
    """Bytes of all weights of one replica; embedding tables are not quantised."""
    model, each = deployment.model, value_bytes(deployment)
    within = QUANTISED.get(str(deployment.effective.get("quantisation")), each)
    return model.params_nonembedding * within + (model.params - model.params_nonembedding) * each


def batch_of(deployment: Deployment) -> int:
    """Sequences that a replica has under way together, at most."""
    asked = deployment.effective.get("batch_size") or SERVER_BATCH
    return max(1, min(int(asked), math.ceil(deployment.prompts.count / deployment.replicas)))


def memory_of_serving(deployment: Deployment, device: Accelerator) -> ServingMemory:
    """The peak of one rank, at a full batch of full length."""
    model, prompts, each = deployment.model, deployment.prompts, value_bytes(deployment)
    parts = deployment.ranks_per_replica
    batch = batch_of(deployment) * int(deployment.effective.get("beams") or 1)
    length = prompts.mean_input_tokens + prompts.output_tokens
    cached = 0.0 if deployment.effective.get("kv_cache") is False else length
    tokens = batch * (prompts.mean_input_tokens if cached else length)
    return ServingMemory(
        weights=weight_bytes(deployment) / parts,
        cache=batch * cached * model.kv_values_per_token * each / parts,
        # The logits of the last token are had in fp32 too.
        activations=ACTIVATIONS * tokens * model.width * each
        + batch * model.vocabulary * (each + 4),
        standing=STANDING_CPU if device.cpu else STANDING_GPU,
    )


def predict(
    deployment: Deployment, *, device: Accelerator, warmup: Warmup, cooldown_s: float = 0.0
) -> Predicted:
    """What one cycle is expected to take: start, warm-up and all requests.

    The energy of waiting and loading is counted as that of work: an upper bound. The start of the
    element is not in it.
    """
    batch = batch_of(deployment)
    seconds = batch_s(deployment, batch, device)
    batches = math.ceil(deployment.prompts.count / (batch * deployment.replicas))
    window = batches * seconds
    if deployment.arrival.rate:
        window = max(window, deployment.prompts.count / deployment.arrival.rate)
    start = CPU_START_S if device.cpu else START_S[deployment.backend]
    load = start + weight_bytes(deployment) / LOAD_BYTES_PER_S
    # As a rule twice the least number of batches are equal enough.
    rounds = min(warmup.most, max(2 * warmup.least, warmup.window))
    warming = max(rounds * seconds, warmup.floor_s)
    duration = cooldown_s + load + warming + window
    device_s = duration * deployment.layout.ranks
    return Predicted(
        duration_s=duration,
        gpu_hours=device_s / 3600,
        energy_j=device_s * device.power_w,
        memory_bytes=memory_of_serving(deployment, device).of_run,
    )


def batch_s(deployment: Deployment, batch: int, device: Accelerator) -> float:
    """Seconds to serve one batch: its prefill, then a forward for each further token."""
    model, prompts, layers = deployment.model, deployment.prompts, deployment.model.layers
    effective, parts = deployment.effective, deployment.ranks_per_replica
    sequences = batch * int(effective.get("beams") or 1)
    before, after = prompts.mean_input_tokens, prompts.output_tokens - 1
    each, weights = value_bytes(deployment), weight_bytes(deployment)
    rate = device.peak_flops * device.utilisation * parts
    if not device.cpu and effective.get("precision") == "fp32":
        rate *= FP32_RATE
    bandwidth = bandwidth_of(device) * MEMORY_UTILISATION * parts
    graphs = deployment.backend != "transformers" and not effective.get("eager")
    graphs = graphs or effective.get("compile_mode") in ("reduce-overhead", "max-autotune")
    layer_s, forward_s = (GRAPH_LAYER_S, GRAPH_FORWARD_S) if graphs else (LAYER_S, FORWARD_S)
    overhead = forward_s + layers * layer_s
    prefill = max(_prompt_flops(model, sequences, before) / rate, weights / bandwidth)
    length = before + (after + 1) / 2
    if effective.get("kv_cache") is False:
        # Every token computes the whole text again.
        step = max(_prompt_flops(model, sequences, length) / rate, weights / bandwidth)
    else:
        cache = sequences * length * model.kv_values_per_token * each
        flops = model.flops(tokens=sequences, context=length)
        step = max(flops / rate, (weights + cache) / bandwidth)
    return prefill + overhead + after * (step + overhead)


def _prompt_flops(model: ServedModel, sequences: int, tokens: float) -> float:
    return model.flops(tokens=sequences * tokens, context=(tokens + 1) / 2)
