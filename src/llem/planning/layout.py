"""The layout: how many nodes and ranks a run gets, and how its batch is divided among them."""

from __future__ import annotations

import math

from llem.campaign import Layout, Site
from llem.campaign.architecture import Architecture, Decoder
from llem.campaign.campaign import LayoutChoice
from llem.campaign.run import Recipe
from llem.planning.hardware import Accelerator

# Weights, gradients and two Adam moments in fp32, or bf16 weights and gradients with fp32 master
# weights and moments: 16 bytes per parameter either way (arXiv 1910.02054, section 3.1).
WEIGHT_BYTES, GRADIENT_BYTES, OPTIMISER_BYTES = 4, 4, 8
MEMORY_MARGIN = 0.85
TIME_MARGIN = 0.8


def memory_bytes(model: Architecture, recipe: Recipe, layout: Layout) -> float:
    """Peak bytes on one device: states by ZeRO stage (arXiv 1910.02054) and activations.

    Activations of a decoder without recomputation: 34 bytes per token, layer and width at two
    bytes a number (arXiv 2205.05198, eq. 2, attention by a fused kernel), and the logits thrice.
    """
    share = {stage: layout.ranks if layout.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    states = model.params * (
        WEIGHT_BYTES / share[3] + GRADIENT_BYTES / share[2] + OPTIMISER_BYTES / share[1]
    )
    tokens = layout.micro_batch * model.context
    scale = 1.0 if recipe.precision == "bf16" else 2.0
    if isinstance(model, Decoder):
        activations = 34 * tokens * model.layers * model.width * scale
    else:
        activations = 34 * tokens * math.sqrt(model.params) * scale
    logits = 3 * 4 * tokens * model.vocabulary
    return states + activations + logits


def duration_s(flops: float, steps: int, layout: Layout, device: Accelerator) -> float:
    """Predicted seconds of a run, without the start of its element."""
    compute = flops / (layout.ranks * device.peak_flops * device.utilisation)
    return compute + steps * device.step_overhead_s * layout.grad_accum


def choose_layout(
    model: Architecture,
    recipe: Recipe,
    tokens: int,
    *,
    site: Site,
    device: Accelerator,
    fixed: LayoutChoice | None,
) -> Layout | str:
    """The fewest ranks that fit in memory and in the time limit, or the reason why none does.

    Ranks are 1, 2, 4 ... within a node, then whole nodes; a batch that does not divide among
    them is not split that way. ZeRO's stage is the lowest that fits.
    """
    sequences = recipe.batch_tokens // model.context
    if fixed is not None:
        if fixed.nodes > site.nodes or fixed.gpus_per_node > site.gpus_per_node:
            return (
                f"layout asks for {fixed.nodes} x {fixed.gpus_per_node} ranks; the site has "
                f"{site.nodes} x {site.gpus_per_node}"
            )
        shapes = [(fixed.nodes, fixed.gpus_per_node)]
        stages: tuple[int, ...] = (fixed.zero_stage,)
    else:
        shapes = _shapes(site)
        stages = (0, 1, 2, 3)
    flops = float(model.flops_per_token) * tokens
    reason = "no layout of the site divides the batch"
    for nodes, ranks in shapes:
        world = nodes * ranks
        if sequences % world:
            if fixed is not None:
                reason = (
                    f"a batch of {sequences} sequences does not divide among {world} ranks; set "
                    "training.batch_tokens to a multiple of the context times the ranks"
                )
            continue
        for stage in stages:
            if fixed is None and stage and world == 1:
                continue
            layout = _with_micro_batch(
                model, recipe, nodes, ranks, stage, sequences // world, device, fixed
            )
            if layout is None:
                reason = f"needs more than {device.memory_bytes / 1e9:.0f} GB per device"
                continue
            needed = duration_s(flops, tokens // recipe.batch_tokens, layout, device)
            if needed <= TIME_MARGIN * site.limits.time:
                return layout
            reason = (
                f"would run {needed / 3600:.1f} h on {nodes} x {ranks} devices; the site's limit "
                f"is {site.limits.time / 3600:.1f} h"
            )
            break
    return reason


def _with_micro_batch(
    model: Architecture,
    recipe: Recipe,
    nodes: int,
    ranks: int,
    stage: int,
    sequences: int,
    device: Accelerator,
    fixed: LayoutChoice | None,
) -> Layout | None:
    """The largest micro-batch that fits; None where not even one sequence does."""
    if fixed is not None and fixed.micro_batch:
        micro = math.gcd(sequences, fixed.micro_batch)
    else:
        micro = sequences
    while True:
        layout = Layout(
            nodes=nodes, gpus_per_node=ranks, zero_stage=stage,
            micro_batch=micro, grad_accum=sequences // micro,
        )  # fmt: skip
        if memory_bytes(model, recipe, layout) <= MEMORY_MARGIN * device.memory_bytes:
            return layout
        if micro == 1:
            return None
        micro = next(m for m in range(micro // 2, 0, -1) if sequences % m == 0)


def _shapes(site: Site) -> list[tuple[int, int]]:
    within = [2**k for k in range(site.gpus_per_node.bit_length()) if 2**k < site.gpus_per_node]
    nodes = [2**k for k in range(site.nodes.bit_length()) if 2**k <= site.nodes]
    return [(1, r) for r in within] + [(n, site.gpus_per_node) for n in nodes]
