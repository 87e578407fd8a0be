"""Peak memory of one rank of a run, derived from what the training engine allocates.

Weights, gradients and Adam's moments are fp32 in either precision (bf16 is autocast): 4 + 4 + 8
bytes a parameter, divided among the ranks as ZeRO's stage says (arXiv 1910.02054, section 5).
DeepSpeed keeps besides a second fp32 copy of the weights that a rank updates, buckets in which
gradients travel, and at stage 3 the weights of which it holds a part and has gathered the rest.
FSDP2 divides all three and gathers a block at a time.
What a block of the reference decoder keeps for its backward pass is counted tensor by tensor, as
arXiv 2205.05198, section 4, does for GPT; attention is a fused kernel (no context x context).

A peak is a moment: each moment of a step is added up and the largest is the answer. Checked against
real runs by `tests/benchmarks/memory_model.py`; the figures are in docs/memory.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from llem.campaign import Layout
from llem.campaign.architecture import Architecture, Decoder
from llem.campaign.run import Recipe

FP32, BF16 = 4, 2
ADAM = 2 * FP32
# Elements of a bucket of DeepSpeed's, as `llem.training.engines.deepspeed` sets it.
BUCKET_ELEMENTS, LEAST_BUCKET_ELEMENTS = 50_000_000, 1_000_000
# stage3_max_live_parameters and stage3_max_reuse_distance of DeepSpeed: below, nothing is let go.
LIVE_ELEMENTS = 1_000_000_000
# stage3_prefetch_bucket_size: weights that are gathered ahead, and copied out of what they came in.
PREFETCH_ELEMENTS = 50_000_000
# Tokens of a forward of the evaluation (`llem.training.task`).
EVALUATION_TOKENS = 4096
# What stands on a device before the run: the CUDA context, NCCL and cuBLAS; Python and torch.
STANDING_GPU, STANDING_CPU = 1.5e9, 0.4e9
# glibc keeps what was freed: resident memory over tensors in use, as measured (docs/memory.md).
CPU_ALLOCATOR = 0.35


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one rank at the moment of its peak.

    `weights` counts master copies, gathered shards and autocast's bf16 copies; `buffers` what
    gradients and weights travel in. `standing` is there whatever is run, `allocator` what the
    allocator keeps beyond what is in use.
    """

    moment: str
    weights: float
    gradients: float
    optimiser: float
    activations: float
    logits: float = 0.0
    buffers: float = 0.0
    standing: float = 0.0
    allocator: float = 0.0

    @property
    def of_run(self) -> float:
        """What the run's own tensors take, as its `peak_memory_bytes` tells afterwards."""
        return (
            self.weights
            + self.gradients
            + self.optimiser
            + self.activations
            + self.logits
            + self.buffers
        )

    @property
    def total(self) -> float:
        """What the device must have."""
        return self.of_run + self.standing + self.allocator


@dataclass(frozen=True, kw_only=True)
class States:
    """Bytes of one rank's model states between two steps, after ZeRO's stage has divided them."""

    weights: float
    gradients: float
    optimiser: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser


def model_states(
    params: int, *, ranks: int, stage: int, bytes_each: tuple[int, int, int]
) -> States:
    """Weights, gradients and optimiser states of `bytes_each`: arXiv 1910.02054, figure 1.

    Mixed precision there is (2, 2, 12), llem's is (4, 4, 8).
    """
    weights, gradients, optimiser = (float(params * each) for each in bytes_each)
    return States(
        weights=weights / (ranks if stage >= 3 else 1),
        gradients=gradients / (ranks if stage >= 2 else 1),
        optimiser=optimiser / (ranks if stage >= 1 else 1),
    )


def memory_of(model: Architecture, recipe: Recipe, layout: Layout, *, cpu: bool) -> Memory:
    """The largest moment of a run. `cpu`: norms are not fused there and keep one tensor more."""
    sizes = _sizes(model, recipe, layout, cpu=cpu)
    states, moments = _moments(model, layout, sizes)
    peak = max(moments, key=_Moment.bytes)
    of_run = states.weights + states.optimiser + peak.bytes()
    return Memory(
        moment=peak.name,
        weights=states.weights + peak.copies,
        gradients=peak.gradients,
        optimiser=states.optimiser,
        activations=peak.activations,
        logits=peak.logits,
        buffers=peak.buffers,
        standing=STANDING_CPU if cpu else STANDING_GPU,
        allocator=CPU_ALLOCATOR * of_run if cpu else 0.0,
    )


def least_bytes(model: Architecture, layout: Layout) -> float:
    """What a rank holds whatever its micro-batch: weights, moments, all gradients at a step's end.

    Never more than `memory_of`, and much faster to tell.
    """
    ranks, stage = layout.ranks, layout.zero_stage
    if _fsdp2(layout):
        return model.params * (2 * FP32 + ADAM) / ranks
    each = (
        FP32 * (1.0 if stage < 3 else 2 / ranks)
        + (FP32 + ADAM) / (ranks if stage else 1)
        + (FP32 if stage == 1 else FP32 / ranks if stage == 2 else 0.0)
    )
    return model.params * each


def _fsdp2(layout: Layout) -> bool:
    return layout.sharding == "fsdp2" and layout.ranks > 1


class _Moment(NamedTuple):
    """What a moment of a step holds besides weights and optimiser states; bytes."""

    name: str
    gradients: float
    activations: float
    logits: float = 0.0
    buffers: float = 0.0
    copies: float = 0.0

    def bytes(self) -> float:
        return self.gradients + self.activations + self.logits + self.buffers + self.copies


@dataclass(frozen=True, kw_only=True)
class _Sizes:
    """Bytes of what comes and goes within a step, for a micro-batch.

    between: a residual stream between blocks, of all blocks. block: what one keeps for its backward
    pass, its input included. last: the last norm. work: what a block's backward pass needs besides.
    loss: the logits, their softmax and its gradient; on the CPU, where the loss is taken in parts,
    never all three of them at once. copies, of_output: autocast's bf16 weights,
    all and the output layer's. output, block_weights: gradients of the output layer, of one block.
    evaluating, evaluating_loss: forward of an evaluation batch, its hidden part and its last part.
    """

    layers: int
    between: float
    block: float
    last: float
    work: float
    loss: float
    copies: float
    of_output: float
    output: float
    block_weights: float
    evaluating: float
    evaluating_loss: float
    tied: bool
    bf16: bool
    cpu: bool


def _sizes(model: Architecture, recipe: Recipe, layout: Layout, *, cpu: bool) -> _Sizes:
    bf16 = recipe.precision == "bf16"
    number = BF16 if bf16 else FP32
    if isinstance(model, Decoder):
        width, inner, layers = float(model.width), float(model.mlp_width), model.layers
        in_block = 4 * width * width + 3 * width * inner
        heads, tied = model.heads, model.tied_embeddings
    else:
        # Of a user's class only the number of parameters is known: a GPT of one block's shape.
        layers, heads, tied = 1, 0, False
        width = math.sqrt(model.params)
        inner, in_block = 4 * width, float(model.params)
    tokens = layout.micro_batch * model.context
    tested = max(1, EVALUATION_TOKENS // model.context) * model.context
    stream = FP32 * width
    # Two norms: an input, on the CPU the normalised input, the output; queries, keys and values,
    # the rotated ones, the attention's output; gate and up, silu(gate) and its product with up.
    block = (4 if cpu else 2) * stream + number * (8 * width + 4 * inner) + FP32 * (heads + 2)
    vocabulary = model.vocabulary
    return _Sizes(
        layers=layers,
        between=layers * stream * tokens,
        block=block * tokens,
        last=tokens * ((2 if cpu else 1) * stream + number * width),
        work=tokens * (2 * number * inner + 2 * stream),
        loss=(FP32 + number if cpu else 3.0 * FP32) * vocabulary * tokens,
        copies=BF16 * (layers * in_block + vocabulary * width) if bf16 else 0.0,
        of_output=BF16 * vocabulary * width if bf16 else 0.0,
        output=FP32 * vocabulary * width,
        block_weights=FP32 * in_block,
        evaluating=tested * (3 * stream + number * 4 * inner),
        evaluating_loss=tested * (stream + vocabulary * (BF16 + 2 * FP32 if bf16 else 2 * FP32)),
        tied=tied,
        bf16=bf16,
        cpu=cpu,
    )


def _moments(model: Architecture, layout: Layout, sizes: _Sizes) -> tuple[States, list[_Moment]]:
    """What stands all the time, and each moment that can be the largest."""
    ranks, stage, again = layout.ranks, layout.zero_stage, layout.activation_checkpointing
    whole = float(FP32 * model.params)
    part = whole / ranks
    bucket = FP32 * float(min(BUCKET_ELEMENTS, max(model.params, LEAST_BUCKET_ELEMENTS)))
    filled = min(bucket, whole)
    states = model_states(
        model.params, ranks=ranks, stage=3 if _fsdp2(layout) else stage,
        bytes_each=(FP32, FP32, ADAM),
    )  # fmt: skip
    # Gradients that stand while activations grow, all of them after the backward pass, and what
    # they travel in; DDP's buckets are the gradients, and stay.
    accumulates = layout.grad_accum > 1
    before = whole if accumulates or (stage == 0 and ranks > 1) else 0.0
    after, weights, copied = whole, whole, 0.0
    gathered = 0.0
    # Of buckets: at the loss, when the backward pass begins and when it ends. The CPU has them only
    # once they are written to.
    standing, begun, ended = 0.0, 0.0, 0.0
    types = 2 if sizes.bf16 else 1
    if stage:
        # The part of the weights that this rank updates, once more.
        weights = whole + part
        begun = 0.0 if sizes.cpu else types * bucket
        ended = begun if stage == 1 or not sizes.cpu else filled
        # Copied out of the bucket, and cast to what gradients travel in.
        copied = (filled if sizes.cpu else types * bucket) + filled * (1.5 if sizes.bf16 else 1)
    if stage == 2:
        before = part if accumulates else 0.0
        after = before + (part if whole > bucket else 0.0)
    elif stage == 3:
        weights = 2 * part + FP32 * float(min(model.params, LIVE_ELEMENTS))
        before = after = part
        if sizes.cpu:
            standing = filled * (0.5 if sizes.bf16 else 1)
        else:
            standing = bucket * (1.5 if sizes.bf16 else 1)
        begun = ended = standing
    if _fsdp2(layout):
        # The tables and the last norm stay gathered, and a block or two with them; of what is
        # reduced the gradient, its copy in the order of ranks and the part that comes of it.
        tables = sizes.output * (1 if sizes.tied else 2)
        weights, gathered = part + tables, 2 * sizes.block_weights
        before, after = (part if accumulates else 0.0), part
        copied = ended = (2 + 1 / ranks) * max(tables, sizes.block_weights)
    # The gradient of a tied table waits for its second half; another's is added at once.
    waiting = sizes.output if sizes.tied or before else 0.0
    early = before + waiting if before else sizes.output
    late = max(before, after - sizes.block_weights if after == whole else after) + waiting
    kept = sizes.between if again else sizes.layers * sizes.block
    copies = sizes.of_output if again else sizes.copies
    one = sizes.block + sizes.work
    # Between steps only DDP and stage 3 keep gradients.
    idle = before if (stage == 0 and ranks > 1 and not _fsdp2(layout)) or stage == 3 else 0.0
    moments = [
        _Moment("loss", before, kept + sizes.last, sizes.loss, standing, copies),
        _Moment("backward, last block", early,
                kept + (one if again else sizes.work), 0.0, begun, copies + gathered),
        _Moment("backward, first block", late, one, 0.0, ended, gathered),
        _Moment("backward, embedding", after + waiting, sizes.work, 0.0, ended, gathered),
        _Moment("evaluation", idle, sizes.evaluating, 0.0, standing, sizes.copies + gathered),
        # Outside autocast, whose copies are gone.
        _Moment("evaluation, loss", idle, sizes.evaluating_loss, 0.0, standing),
    ]  # fmt: skip
    if stage:
        # The optimiser's gradients are flattened out of those that were reduced.
        moments.append(_Moment("step", 2 * part, 0.0, 0.0, standing))
    if stage == 3 and ranks > 1:
        ahead = (BF16 if sizes.bf16 else FP32) * float(min(model.params, PREFETCH_ELEMENTS))
        moments.append(
            _Moment("evaluation, gathering", idle, sizes.evaluating, 0.0, standing + ahead,
                    sizes.copies)
        )  # fmt: skip
    if stage in (1, 2) and ranks > 1:
        left = whole if stage == 1 and whole > bucket else before
        moments.append(_Moment("reduction", left, 0.0, 0.0, copied))
    return States(weights=weights, gradients=before, optimiser=states.optimiser), moments
