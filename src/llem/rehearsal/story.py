"""What happens in a rehearsal, told as events in the order of their times.

Every number in a line is the one that stands in the records of the same attempt: what is shown is
what was played. One run is followed closely; of the others the beginning, the troubles and the end
are told.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from typing import Literal

import numpy as np

from llem._numerals import (
    format_amount,
    format_count,
    format_duration,
    format_energy,
    format_flops,
    format_si,
    format_times,
    percent,
)
from llem.campaign import CustomModel, Run
from llem.records import Phase
from llem.rehearsal.course import CHECKPOINT_BYTES, Attempt, checkpoint_s
from llem.rehearsal.export import export_s, parts_of, total_of
from llem.rehearsal.fleet import LIMIT_C
from llem.rehearsal.measure import Measured
from llem.rehearsal.recording import evaluation_loss_se, evaluations_of, peak_memory
from llem.rehearsal.world import World

Level = Literal["info", "warning", "error", "heading"]

# Steps of the followed run that get a line, and ranks that get one; spikes above so many sd.
STEPS_TOLD, RANKS_TOLD, SPIKE_SDS, SPIKES_TOLD = 20, 16, 8.0, 3
# Steps that took so many times the median are told, so many of them; memory from this share on.
SLOW_STEP, SLOW_TOLD, NEAR_FULL = 1.8, 3, 0.85
# A line of devices for each node after so many of the steps that are told, for so many nodes.
GRID_EVERY, GRID_NODES = 5, 4
# The law is fitted from so many runs on, and again after so large a share of all.
FIT_FROM, FIT_SHARE = 8, 0.15


@dataclass(frozen=True)
class Event:
    """Something that happened at `t_s` of the campaign; `run_id` is '' for the campaign's own.

    `rows` are names and values that belong below it.
    """

    t_s: float
    run_id: str
    text: str
    level: Level = "info"
    kind: str = ""
    rows: tuple[tuple[str, str], ...] = ()


def followed(attempts: Sequence[Attempt]) -> str:
    """The run that is worth following: of those that complete the longest, else any."""
    done = [a for a in attempts if a.status == "completed"] or list(attempts)
    return max(done, key=lambda a: (a.window_s, a.run.run_id)).run.run_id


def tell(world: World, attempts: Sequence[Attempt], *, follow: str = "") -> Iterator[Event]:
    """All events, in order; the run `follow` in full."""
    ordered = sorted(attempts, key=lambda a: a.t0_s)
    own = [a for a in ordered if a.run.run_id == follow]
    told = [_close(world, a, own) if a.run.run_id == follow else _brief(a) for a in ordered]
    yield from merge(*told, _waves(world), _fits(world, ordered), key=lambda e: e.t_s)


def _waves(world: World) -> Iterator[Event]:
    """What each later wave is, when it was planned from those before it."""
    for begin, wave in list(zip(world.begins[::-1], world.plan.waves[::-1], strict=False))[::-1]:
        if wave.number == 1:
            continue
        text = (
            f"wave {wave.number} of {world.plan.campaign.waves}: {wave.runs} runs for "
            f"{format_amount(wave.value, world.plan.budget.unit)}, chosen from "
            f"{wave.observed} that "
            "have ended"
        )
        yield Event(begin.at_s, "", text, "heading", "wave")


def _fits(world: World, attempts: Sequence[Attempt]) -> Iterator[Event]:
    """The law as it arrives: fitted again whenever so large a share of the runs is done."""
    done: list[Attempt] = []
    runs = len(world.plan.runs)
    due = max(FIT_FROM, FIT_SHARE * runs)
    for a in sorted(attempts, key=lambda a: a.t1_s):
        if a.status != "completed":
            continue
        done.append(a)
        if len(done) >= due:
            due += FIT_SHARE * runs
            yield Event(a.t1_s, "", f"fit of {len(done)} runs: {_fit(world, done)}", kind="fit")


def _fit(world: World, done: Sequence[Attempt]) -> str:
    from llem.scaling import ScalingError, fit_law

    try:
        fit = fit_law(
            [a.run.params for a in done], [a.run.tokens for a in done], [a.loss for a in done],
            law=world.plan.campaign.law, flops=[a.run.flops for a in done], bootstrap=0,
        )  # fmt: skip
    except ScalingError as error:
        return f"no law yet ({str(error).splitlines()[-1].strip()})"
    words = [f"{name} {value:.4g}" for name, value in fit.ensemble.law.named(
        fit.ensemble.natural).items()]  # fmt: skip
    target = float(world.plan.head()["design"]["target_flops"])
    best = fit.ensemble.at(target, brief=True)
    return f"{', '.join(words)}; N* {format_count(best.params)} at {format_flops(target)} FLOP"


def title(run: Run) -> str:
    """A run in a few words."""
    return (
        f"{format_count(run.params)} parameters, {format_count(run.tokens)} tokens, seed {run.seed}"
    )


def _brief(a: Attempt) -> Iterator[Event]:
    name, run = a.run.run_id, a.run
    again = f", attempt {a.number}, from step {a.start_step}" if a.number else ""
    ranks = f"{run.layout.ranks} rank{'s' if run.layout.ranks > 1 else ''}"
    where = _names([n.name for n in a.nodes])
    yield Event(a.t0_s, name, f"begins: {title(run)}, on {ranks} of {where}{again}", kind="begin")
    yield _ending(a)


def _ending(a: Attempt) -> Event:
    name, run = a.run.run_id, a.run
    took = format_duration(a.window_s)
    if a.status == "completed":
        text = (
            f"completed: loss {a.loss:.4f} +- {evaluation_loss_se(run):.4f} after {took}, "
            f"{format_si(a.tokens_per_s)} tokens/s"
        )
        return Event(a.t1_s, name, text, kind="completed")
    words = {
        "killed": "lost", "interrupted": "interrupted", "failed": "failed", "diverged": "diverged",
    }  # fmt: skip
    after = f"at step {a.step} of {run.steps}: {a.reason}"
    then = ""
    if a.status in ("killed", "interrupted", "failed"):
        lost = a.step - a.saved_step
        back = f"step {a.saved_step}" if a.saved_step else "the beginning"
        then = f"; goes on from {back}" + (f" ({lost} steps are done again)" if lost else "")
    level: Level = "error" if a.status in ("killed", "failed") else "warning"
    return Event(a.t1_s, name, f"{words[a.status]} {after}{then}", level, a.status)


def _close(world: World, a: Attempt, own: Sequence[Attempt]) -> Iterator[Event]:
    """One attempt, of those of its run, with all that its log would say."""
    events = sorted(_all(world, a, own), key=lambda e: e.t_s)
    yield from events


def _all(world: World, a: Attempt, own: Sequence[Attempt]) -> Iterator[Event]:
    run, name = a.run, a.run.run_id
    measured = Measured(world, a, interval_s=1.0)
    yield from _start(world, a)
    yield from _training(world, a, measured)
    yield from _boards(a, measured)
    yield from _meters(a, measured)
    yield from _memory(a, measured)
    yield from _hiccups(a, measured)
    yield _ending(a)
    if a.status == "completed":
        yield from _export(a, run, name)
        yield _summary(world, own, measured)


def _start(world: World, a: Attempt) -> Iterator[Event]:
    """Model, tokenizer, data, ranks: from the job's start to the first step."""
    run, name, layout, model = a.run, a.run.run_id, a.run.layout, a.run.model
    first = a.blocks[0].t0_s if a.blocks else a.t1_s
    marks = iter(np.linspace(a.t0_s, max(a.t0_s, first), 9 + RANKS_TOLD).tolist())

    def event(text: str, level: Level = "info") -> Event:
        return Event(next(marks), name, text, level, "start")

    yield Event(a.t0_s, name, f"Attempt {a.number}: {title(run)}", "heading", "begin")
    yield event(f"model: {_shape(run)}")
    recipe = run.recipe
    yield event(
        f"precision {recipe.precision}; {recipe.optimiser}, peak rate {recipe.learning_rate:.3g}, "
        f"{recipe.schedule} with {recipe.warmup_steps} steps of warm-up"
    )
    yield event(f"tokenizer: vocabulary of {getattr(model, 'vocabulary', '?')}")
    yield event(
        f"data: {getattr(run.data, 'path', '?')}, {format_count(run.tokens)} tokens in {run.steps} "
        f"steps of {format_count(recipe.batch_tokens)} (micro-batch {layout.micro_batch}, "
        f"{layout.grad_accum} accumulated)"
    )
    hosts = f"{layout.nodes} node{'s' if layout.nodes > 1 else ''}"
    yield event(f"distributed: {layout.ranks} ranks on {hosts}, ZeRO stage {layout.zero_stage}")
    per_node = layout.ranks // layout.nodes
    for rank in range(min(layout.ranks, RANKS_TOLD)):
        node, boards = a.nodes[rank // per_node], a.boards[rank // per_node]
        board = boards[min(rank % per_node, len(boards) - 1)]
        kind = "package" if board.package else format_si(board.memory_bytes, "B")
        yield event(f"[rank {rank}/{layout.ranks}] {board.name} ({kind}) on {node.name}")
    if layout.ranks > RANKS_TOLD:
        yield event(f"... and {layout.ranks - RANKS_TOLD} more ranks")
    if layout.ranks > 1:
        ms = 0.4 + 0.9 * math.log2(layout.ranks) + (3.0 if layout.nodes > 1 else 0.0)
        yield event(f"all-reduce test passed ({ms:.2f} ms)")
    if a.start_step:
        yield event(f"resumed after step {a.start_step} from checkpoint step-{a.start_step:09d}")


def _shape(run: Run) -> str:
    """What the model is: a decoder's layers and widths, or a user's class and its size."""
    model, params = run.model, f"{format_count(run.params)} parameters"
    if isinstance(model, CustomModel):
        return f"{model.class_path}, {params} ({model.size} {model.value})"
    return (
        f"{model.family}, {params} ({model.layers} layers, hidden {model.width}, {model.heads} "
        "heads)"
    )


def _mfu(world: World, a: Attempt) -> str:
    """`MFU 43.2%`; nothing on a processor, whose peak is a guess."""
    if world.device.cpu:
        return ""
    peak = world.device.peak_flops * a.run.layout.ranks
    return f"MFU {percent(a.tokens_per_s * float(a.run.model.flops_per_token) / peak, places=1)}"


def _training(world: World, a: Attempt, measured: Measured) -> Iterator[Event]:
    """Steps, spikes, evaluations and checkpoints, with the numbers of the records."""
    run, name, curve = a.run, a.run.run_id, measured.curve
    number, _, end = measured.step_times
    if len(number):
        yield Event(a.blocks[0].t0_s, name, "training starts", "heading", "train")
        mfu = f"{_mfu(world, a)}  ".lstrip()
        told = np.unique(np.linspace(0, len(number) - 1, STEPS_TOLD).astype(int))
        for place, i in enumerate(told.tolist()):
            if place % GRID_EVERY == GRID_EVERY - 1:
                yield from _devices(a, measured, float(end[i]))
            step = int(number[i])
            loss, rate = float(curve.loss[step]), a.tokens_per_s
            left = (run.steps - step - 1) * run.recipe.batch_tokens / rate
            yield Event(
                float(end[i]), name,
                f"step {step + 1:{len(str(run.steps))}d}/{run.steps}  loss {loss:.4f}  ppl "
                f"{math.exp(min(loss, 700)):.4g}  lr {curve.learning_rate[step]:.2e}  grad "
                f"{curve.grad_norm[step]:.3f}  {format_si(rate)} tokens/s  {mfu}left "
                f"{format_duration(left)}", kind="step",
            )  # fmt: skip
        yield from _spikes(a, measured)
    told_at = iter(evaluations_of(world, a))
    best = math.inf
    for block in a.blocks:
        if block.phase == Phase.EVALUATION:
            step, loss = next(told_at)
            train = float(curve.loss[max(0, step - 50) : step].mean()) if step else math.nan
            yield Event(
                block.t1_s, name,
                f"evaluation after step {step}: loss {loss:.4f} +- {evaluation_loss_se(run):.4f}, "
                f"ppl {math.exp(min(loss, 700)):.4g} (training {train:.4f}, {loss - train:+.4f}), "
                f"{block.t1_s - block.t0_s:.1f} s", kind="evaluation",
            )  # fmt: skip
            if loss >= best:
                text = f"no better than the best evaluation before it, {best:.4f}"
                yield Event(block.t1_s, name, text, "warning", "evaluation")
            best = min(best, loss)
        elif block.fork:
            text = f"checkpoint step-{block.last:09d} is left for {block.fork}, which branches off"
            yield Event(block.t1_s, name, text, kind="fork")
        elif block.phase == Phase.CHECKPOINT:
            size = format_si(CHECKPOINT_BYTES * run.params, "B")
            yield Event(
                block.t1_s, name,
                f"checkpoint step-{block.last:09d}: {size} in {block.t1_s - block.t0_s:.2f} s",
                kind="checkpoint",
            )  # fmt: skip


def _spikes(a: Attempt, measured: Measured) -> Iterator[Event]:
    number, _, end = measured.step_times
    loss = measured.curve.loss[number]
    if len(loss) < 100:
        return
    width = 25
    mean = np.convolve(loss, np.ones(width) / width, mode="full")[: len(loss)]
    before = np.concatenate([np.full(width, np.inf), mean[width - 1 : len(loss) - 1]])[: len(loss)]
    sd = float(np.std(np.diff(loss))) / math.sqrt(2) or 1.0
    high = np.flatnonzero(loss - before > SPIKE_SDS * sd)
    last = -1000
    count = 0
    for i in high.tolist():
        if i - last < 100 or count == SPIKES_TOLD:
            continue
        last, count = i, count + 1
        norm = float(measured.curve.grad_norm[number[i]])
        text = (
            f"loss spike at step {number[i] + 1}: {loss[i]:.4f}, mean before {before[i]:.4f}; "
            f"gradient norm {norm:.2f}, clipped to {a.run.recipe.clip_norm:g}"
        )
        yield Event(float(end[i]), a.run.run_id, text, "warning", "spike")


def _memory(a: Attempt, measured: Measured) -> Iterator[Event]:
    """Memory that is nearly full."""
    board = a.boards[0][0]
    peak = peak_memory(measured)
    if a.blocks and not board.package and peak > NEAR_FULL * board.memory_bytes:
        text = (
            f"memory: {format_si(peak, 'B')} of {format_si(board.memory_bytes, 'B')} are taken on "
            "the fullest device"
        )
        yield Event(min(a.t1_s, a.blocks[0].t0_s + 1.0), a.run.run_id, text, "warning", "memory")


def _hiccups(a: Attempt, measured: Measured) -> Iterator[Event]:
    """Steps that took much longer than the others, as a slow all-reduce makes them."""
    number, begin, end = measured.step_times
    took = end - begin
    if len(took) < 20:
        return
    usual = float(np.median(took))
    slow = np.flatnonzero(took > SLOW_STEP * usual)
    for i in slow[:: max(1, len(slow) // SLOW_TOLD)][:SLOW_TOLD].tolist():
        text = f"step {number[i] + 1} took {took[i]:.3g} s, {took[i] / usual:.1f} times the median"
        yield Event(float(end[i]), a.run.run_id, text, "warning", "hiccup")


def _devices(a: Attempt, measured: Measured, t_s: float) -> Iterator[Event]:
    """The devices of the attempt's nodes, in a line each; where a screen is, it shows them."""
    for place, (node, boards) in enumerate(zip(a.nodes, a.boards, strict=True)):
        if place == GRID_NODES:
            yield Event(t_s, a.run.run_id, f"... and {len(a.nodes) - place} more nodes",
                        kind="grid")  # fmt: skip
            return
        words = []
        for index, board in enumerate(boards):
            power = measured.power(place, board)
            piece = int(np.clip(np.searchsorted(power.edges, t_s) - 1, 0, len(power.watts) - 1))
            words.append(f"{index}: {power.celsius[piece]:.0f} C {power.watts[piece]:.0f} W")
        yield Event(t_s, a.run.run_id, f"{node.name}  {'  '.join(words)}", kind="grid")


def _meters(a: Attempt, measured: Measured) -> Iterator[Event]:
    """Meters that fail."""
    for node, fault in zip(a.nodes, measured.meter_faults, strict=True):
        if fault is not None and fault.at_s < a.t1_s:
            text = f"{node.name}: {fault.text}"
            yield Event(fault.at_s, a.run.run_id, text, "warning", "meter")


def _boards(a: Attempt, measured: Measured) -> Iterator[Event]:
    """Boards that are slow, or hot."""
    for place, (node, boards) in enumerate(zip(a.nodes, a.boards, strict=True)):
        for index, board in enumerate(boards):
            where = f"{node.name}, device {index}"
            if board.straggles:
                at = a.blocks[0].t0_s + 0.05 * (a.t1_s - a.blocks[0].t0_s) if a.blocks else a.t1_s
                text = (
                    f"straggler: {where} runs at {percent(board.speed, places=0)} "
                    "of the others' speed"
                )
                yield Event(at, a.run.run_id, text, "warning", "straggler")
            if board.throttles and not board.package:
                power = measured.power(place, board)
                hot = np.flatnonzero(power.held_back)
                if len(hot):
                    text = (
                        f"{where} is at {LIMIT_C:.0f} C and slows itself to "
                        f"{percent(board.slowed, places=0)}"
                    )
                    at = float(power.edges[hot[0]])
                    yield Event(at, a.run.run_id, text, "warning", "throttle")


def _export(a: Attempt, run: Run, name: str) -> Iterator[Event]:
    """The weights, as they would be written."""
    at, ended = a.t1_s, a.t1_s + export_s(run)
    yield Event(at, name, "export", "heading", "export")
    for part in parts_of(run):
        at = min(ended, at + part.seconds)
        yield Event(at, name, part.done, kind="export")
    yield Event(at, name, f"export: {total_of(run)}; llem keeps the checkpoint", kind="export")


def _summary(world: World, own: Sequence[Attempt], measured: Measured) -> Event:
    """The run at a glance, all of its attempts together."""
    a, run = own[-1], own[-1].run
    joules = math.fsum(Measured(world, each, interval_s=1.0).truth_j() for each in own)
    tokens = run.tokens - a.trunk_steps * run.recipe.batch_tokens
    evaluations = [loss for each in own for _, loss in evaluations_of(world, each)]
    worked_s = math.fsum(b.t1_s - b.t0_s for b in a.blocks if b.phase != Phase.CHECKPOINT)
    saved = format_si(CHECKPOINT_BYTES * run.params, "B")
    total_s = math.fsum(each.window_s for each in own)
    rows = [
        ("run", title(run)),
        ("total time", format_duration(total_s)
         + (f" in {len(own)} attempts" if len(own) > 1 else "")),
        ("steps", (f"{run.steps}, {format_count(run.tokens)} tokens, "
            f"{format_times(run.epochs)} epochs")),
        ("loss", f"{a.loss:.4f} +- {evaluation_loss_se(run):.4f}"),
        ("perplexity", f"{math.exp(min(a.loss, 700)):.4g}"),
        ("best evaluation", f"{min(evaluations):.4f}"),
        ("throughput", f"{format_si(a.tokens_per_s)} tokens/s  {_mfu(world, a)}".rstrip()),
        ("devices at work", f"{percent(worked_s / a.window_s, places=1)} of the last attempt"),
        ("peak memory", f"{format_si(peak_memory(measured), 'B')} a rank"),
        ("energy", f"{format_energy(joules)}, {format_si(joules / max(1, tokens), 'J')} a token"),
        ("checkpoints", f"{saved} in {checkpoint_s(run):.2f} s each"),
        ("weights", total_of(run)),
    ]  # fmt: skip
    text = f"completed: loss {a.loss:.4f} after {format_duration(total_s)}"
    return Event(a.t1_s + export_s(run), run.run_id, text, "heading", "summary", tuple(rows))


def _names(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
