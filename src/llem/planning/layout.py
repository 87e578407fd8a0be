"""The layout: how many nodes and ranks a run gets, and how its batch is divided among them."""

from __future__ import annotations

import math
from bisect import bisect
from dataclasses import replace

from llem._numerals import format_duration, format_si
from llem.campaign import CustomModel, Layout, Site
from llem.campaign.architecture import Architecture
from llem.campaign.campaign import LayoutChoice
from llem.campaign.run import Recipe
from llem.planning.hardware import Accelerator
from llem.planning.memory import least_bytes, memory_of

MEMORY_MARGIN = 0.85
TIME_MARGIN = 0.8
# ZeRO's stage and whether activations are computed again, cheapest first: stages 1 and 2 move the
# bytes of plain data parallelism, computing again costs a third more work, and stage 3 half as many
# bytes again (arXiv 1910.02054, section 7), over what may be a slow network.
WAYS = (
    (0, False), (1, False), (2, False), (0, True), (1, True), (2, True), (3, False), (3, True)
)  # fmt: skip


def computed_flops(model: Architecture, layout: Layout) -> float:
    """FLOPs per token that devices carry out: the model's, and what checkpointing does again.

    About 4/3 of the model's where the blocks outweigh the output layer.
    """
    again = model.recomputed_flops_per_token if layout.activation_checkpointing else 0
    return float(model.flops_per_token + again)


def duration_s(flops: float, steps: int, layout: Layout, device: Accelerator) -> float:
    """Predicted seconds of a run of so many computed FLOPs, without the start of its element."""
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
    them is not split that way. Of the WAYS to save memory on them it is the cheapest that fits,
    with the largest micro-batch that does.
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
        asked = fixed.activation_checkpointing
        ways_of = Layout(sharding=fixed.sharding, compile=fixed.compile)
    else:
        shapes = _shapes(site)
        # Muon needs each matrix whole.
        stages, asked = ((0,) if recipe.optimiser == "muon" else (0, 1, 2, 3)), None
        ways_of = Layout()
    if isinstance(model, CustomModel):
        if asked:
            return "a model class of your own does its own activation checkpointing"
        asked = False
    ways = [(s, again) for s, again in WAYS if s in stages and asked in (None, again)]
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
        steps = tokens // recipe.batch_tokens
        for stage, again in ways:
            if fixed is None and stage and world == 1:
                continue
            way = replace(
                ways_of, nodes=nodes, gpus_per_node=ranks, zero_stage=stage,
                activation_checkpointing=again,
            )  # fmt: skip
            flops = computed_flops(model, way) * tokens
            # In one micro-batch, the fastest: to look for the largest that fits takes longer.
            needed = duration_s(flops, steps, way, device)
            if needed <= TIME_MARGIN * site.limits.time:
                layout = _with_micro_batch(model, recipe, way, sequences // world, device, fixed)
                if layout is None:
                    most = format_si(device.memory_bytes, "B")
                    reason = f"needs more than {most} per device (site.gpu.memory)"
                    continue
                needed = duration_s(flops, steps, layout, device)
                if needed <= TIME_MARGIN * site.limits.time:
                    return layout
            reason = (
                f"would run {format_duration(needed)} on {nodes} x {ranks} devices; "
                "the site's limit "
                f"is {format_duration(site.limits.time)}"
            )
            if not again:
                # What comes after is no faster.
                break
    return reason


def _with_micro_batch(
    model: Architecture,
    recipe: Recipe,
    layout: Layout,
    sequences: int,
    device: Accelerator,
    fixed: LayoutChoice | None,
) -> Layout | None:
    """The layout with the largest micro-batch that fits; None where not even one sequence does."""
    micro = sequences
    if fixed is not None and fixed.micro_batch:
        micro = math.gcd(sequences, fixed.micro_batch)

    def of(micro: int) -> Layout:
        return replace(layout, micro_batch=micro, grad_accum=sequences // micro)

    if least_bytes(model, layout) > MEMORY_MARGIN * device.memory_bytes:
        return None
    if not fits(model, recipe, of(1), device):
        # One step of all sequences keeps no gradients from one micro-batch to the next.
        return of(micro) if micro > 1 and fits(model, recipe, of(micro), device) else None
    tries = [micro]
    while tries[-1] > 1:
        tries.append(next(m for m in range(tries[-1] // 2, 0, -1) if sequences % m == 0))
    return of(tries[bisect(tries, False, key=lambda m: fits(model, recipe, of(m), device))])


def fits(model: Architecture, recipe: Recipe, layout: Layout, device: Accelerator) -> bool:
    """Whether a run fits on the device with a margin for what the memory model has wrong."""
    needed = memory_of(model, recipe, layout, cpu=device.cpu).total
    return needed <= MEMORY_MARGIN * device.memory_bytes


def _shapes(site: Site) -> list[tuple[int, int]]:
    within = [2**k for k in range(site.gpus_per_node.bit_length()) if 2**k < site.gpus_per_node]
    nodes = [2**k for k in range(site.nodes.bit_length()) if 2**k <= site.nodes]
    return [(1, r) for r in within] + [(n, site.gpus_per_node) for n in nodes]
