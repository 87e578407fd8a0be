"""The shapes that a calibration measures: a few of a plan's own runs, for a few steps each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from llem._numerals import format_gpu_hours
from llem.campaign import Budget, Layout, Predicted, Run, Runs, Site
from llem.planning.arrays import pack
from llem.planning.cells import Dropped
from llem.planning.hardware import Accelerator
from llem.planning.layout import duration_s
from llem.planning.plan import Plan, WavePlan
from llem.planning.waves import PROMISED

SHAPES = 5
# Enough to get past the warm-up, and long enough for a meter: whichever is more.
LEAST_STEPS = 40
LEAST_S = 6.0
MOST_STEPS = 2000
# Held-out windows of a calibration: its loss is nobody's result.
EVALUATION_WINDOWS = 8
# What one shape may cost: this share of the plan's GPU-hours, or so many.
COST_SHARE = 0.02
CHEAP_GPU_HOURS = 0.2
CALIBRATION = "calibration"
NAME_ENDING = f"-{CALIBRATION}"
LONGEST_NAME = 64

Place = tuple[int, int, int, bool]


@dataclass(frozen=True)
class Chosen:
    """The runs whose shapes are measured, and what of the plan no shape stands for."""

    runs: tuple[Run, ...]
    left_out: tuple[Dropped, ...]


def calibration_plan(plan: Plan, *, shapes: int = SHAPES, steps: int | None = None) -> Plan:
    """The plan that measures `shapes` of a campaign's plan, each in an element of its own.

    `steps` of each where given; else at least 40, and as many as fill some seconds. It is a plan
    as any other, so that what runs campaigns runs it too.
    """
    site = plan.site.model_copy(update={"pack_s": 0.0})

    def short(run: Run) -> Run:
        return shortened(run, steps, site=site, device=plan.device)

    chosen = choose_shapes(
        plan.runs,
        count=shapes,
        gpu_hours=lambda run: short(run).predicted.gpu_hours,
        affordable=max(COST_SHARE * plan.totals["gpu_hours"], CHEAP_GPU_HOURS),
    )
    # Layout is no part of a run's name: one model in two places must not be one run.
    runs = Runs.of(replace(short(run), seed=number) for number, run in enumerate(chosen.runs))
    name = plan.campaign.name[: LONGEST_NAME - len(NAME_ENDING)] + NAME_ENDING
    hours = math.fsum(run.predicted.gpu_hours for run in runs)
    made = replace(
        plan,
        campaign=plan.campaign.model_copy(update={"name": name, "calibration": None}),
        site=site,
        budget=Budget(hours, "GPUh"),
        runs=runs,
        arrays=pack(runs, site),
        dropped=chosen.left_out,
        warnings=(),
        shape=None,
        promise=dict.fromkeys(PROMISED),
    )
    wave = WavePlan(number=1, kind=CALIBRATION, value=hours, runs=len(runs), digest=made.digest)
    return replace(made, waves=(wave,))


def choose_shapes(
    runs: Iterable[Run], *, count: int, gpu_hours: Callable[[Run], float], affordable: float
) -> Chosen:
    """At most `count` runs of distinct shapes, spread over work and size.

    The smallest and the largest first, then each place (nodes x ranks, ZeRO's stage) that has none
    yet, the dearest to the plan before others, then always the one furthest from those chosen.
    A shape that would cost more than `affordable` GPU-hours to measure is left out, unless all do.
    """
    hours_of_place: dict[Place, float] = {}
    distinct: dict[tuple[object, ...], Run] = {}
    for some in Runs.of(runs).replicates:
        run, place = some.run, _place(some.run.layout)
        hours = len(some) * run.predicted.gpu_hours
        hours_of_place[place] = hours_of_place.get(place, 0.0) + hours
        distinct.setdefault(_shape(run), run)
    order = sorted(distinct.values(), key=lambda run: (work_of(run), run.params, run.run_id))
    cheap = [run for run in order if gpu_hours(run) <= affordable]
    if not cheap:
        cheap = [min(order, key=gpu_hours)]
    chosen = [cheap[0]] if count == 1 or len(cheap) == 1 else [cheap[0], cheap[-1]]
    for place in sorted(hours_of_place, key=lambda p: (-hours_of_place[p], p)):
        there = [run for run in cheap if _place(run.layout) == place]
        if there and len(chosen) < count and place not in {_place(r.layout) for r in chosen}:
            chosen.append(there[len(there) // 2])
    while len(chosen) < min(count, len(cheap)):
        rest = [run for run in cheap if run not in chosen]
        chosen.append(max(rest, key=lambda run: _nearest(run, chosen)))
    chosen.sort(key=lambda run: (work_of(run), run.params, run.run_id))
    seen = {_place(run.layout) for run in chosen}
    left_out = []
    for place in sorted(set(hours_of_place) - seen):
        there = [run for run in order if _place(run.layout) == place]
        least = min(gpu_hours(run) for run in there)
        nodes, ranks, stage, _ = place
        reason = f"{nodes} x {ranks} ranks, ZeRO {stage}: " + (
            f"{format_gpu_hours(least)} are more than "
            f"{format_gpu_hours(affordable)}" if least > affordable
            else f"{count} shapes were asked for"
        )  # fmt: skip
        left_out += [Dropped(run.level, run.params, reason) for run in there[:1]]
    return Chosen(tuple(chosen), tuple(left_out))


def shortened(run: Run, steps: int | None, *, site: Site, device: Accelerator) -> Run:
    """The run for a few steps: same model, batch and layout, next to no evaluation."""
    layout = run.layout
    flops_per_step = float(run.model.flops_per_token) * run.recipe.batch_tokens
    if steps is None:
        step_s = duration_s(flops_per_step, 1, layout, device)
        steps = min(MOST_STEPS, max(LEAST_STEPS, math.ceil(LEAST_S / step_s)))
    seconds = duration_s(flops_per_step * steps, steps, layout, device)
    device_s = (seconds + site.startup_s) * layout.ranks
    held_out = EVALUATION_WINDOWS * run.model.context + 1
    return replace(
        run,
        steps=steps,
        tokens=steps * run.recipe.batch_tokens,
        recipe=replace(run.recipe, warmup_steps=min(run.recipe.warmup_steps, steps - 1)),
        data=run.data.holding_out_at_most(held_out),
        predicted=Predicted(
            duration_s=seconds,
            gpu_hours=device_s / 3600,
            energy_j=device_s * device.power_w,
            memory_bytes=run.predicted.memory_bytes,
        ),
        checkpoint_steps=0,
        segments=1,
        asked=None,
        evaluate_at=(),
        branch_at=(),
        trunk_steps=0,
    )


def work_of(run: Run) -> float:
    """FLOPs of one micro-step on one rank: beside the overhead, what its time depends on."""
    layout = run.layout
    flops = float(run.model.flops_per_token) * run.recipe.batch_tokens
    return flops / (layout.ranks * layout.grad_accum)


def _shape(run: Run) -> tuple[object, ...]:
    return (run.params, run.model.flops_per_token, run.recipe.batch_tokens, run.layout)


def _place(layout: Layout) -> Place:
    return (
        layout.nodes, layout.gpus_per_node, layout.zero_stage, layout.activation_checkpointing,
    )  # fmt: skip


def _nearest(run: Run, chosen: Sequence[Run]) -> float:
    """How far the nearest chosen run is, in the logarithms of work and size."""
    return min(
        math.hypot(math.log(work_of(run) / work_of(c)), math.log(run.params / c.params))
        for c in chosen
    )
