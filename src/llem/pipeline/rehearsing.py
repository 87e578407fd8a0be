"""A rehearsal as a campaign's folder: the plan, the attempts, their records and their ends.

The folder says everywhere that it was rehearsed (`rehearsal.json`, plan.json, every record, what
follows from them), and no command that acts on a cluster takes it.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.cluster import CampaignFolder, finite_or_none, write_json
from llem.errors import Fault, InputError
from llem.pipeline.refining import grow_plan, own_of, wave_is_due
from llem.planning import BudgetError

if TYPE_CHECKING:
    from llem.rehearsal import Attempt, Measured, World

REHEARSAL_SCHEMA = "llem-rehearsal-1"
TRUTH_FILE = "truth.json"
# What a rehearsal's samples may come to, in rows, before they are taken less often.
MOST_SAMPLES = 5_000_000
# Planning a wave takes a few seconds, and what waits for its end looks twice a minute.
PLANNING_S = 30.0


@dataclass(frozen=True)
class Rehearsed:
    """What was played, wave after wave; `unplanned` is why a wave that was due is missing.

    `truth` maps a run's name to {loss, energy_j} as the simulator knows them:
    the held-out loss it would end with, and what its attempts used. `interval_s` is that of the
    samples; `asked_s` the campaign's own.
    """

    folder: CampaignFolder
    world: World
    attempts: tuple[Attempt, ...]
    truth: dict[str, dict[str, float]]
    interval_s: float
    asked_s: float
    unplanned: str = ""


def rehearse(
    world: World,
    *,
    out: str | Path,
    replace_old: bool = False,
    interval_s: float | None = None,
    code: Path | None = None,
    watch: Callable[[Attempt], None] | None = None,
) -> Rehearsed:
    """Play the world's plan into the folder `out`, with the records that real runs leave.

    Where the campaign asks for more waves each is planned from the records of those before it, as
    `llem run` does; `code` is the folder of the user's own model, where there is one.

    `watch` is told each attempt once its files are written, wave after wave in the order of their
    beginnings. `interval_s` is the samples' (default: the campaign's, less often where that would
    make more than `MOST_SAMPLES`). An earlier rehearsal there is replaced with `replace_old`; a
    real campaign never is. Raises InputError.
    """
    from llem.pipeline.campaigns import aggregate_campaign
    from llem.rehearsal import play

    folder = CampaignFolder(Path(out))
    _make_room(folder, replace_old=replace_old)
    mark = world.mark()
    asked_s = float(world.plan.campaign.energy.interval)
    write_json(folder.rehearsal_file, {"schema": REHEARSAL_SCHEMA, **mark,
                                       "planted": world.planted.to_dict()})  # fmt: skip
    chosen_s, unplanned = interval_s or 0.0, ""
    attempts: list[Attempt] = []
    truth: dict[str, dict[str, float]] = {}
    while True:
        folder.write_plan(replace(world.plan, rehearsal=mark), {}, replace=bool(attempts))
        played = play(world)
        chosen_s = chosen_s or sample_interval(played, asked_s)
        for attempt in played:
            used_j = _write(folder, world, attempt, interval_s=chosen_s)
            known = truth.setdefault(
                attempt.run.run_id, {"loss": world.fate(attempt.run).loss, "energy_j": 0.0}
            )
            known["energy_j"] += used_j
            if watch is not None:
                watch(attempt)
        attempts += played
        if not wave_is_due(world.plan):
            break
        rows = [asdict(row) for row in aggregate_campaign(folder).observations]
        grown = _grown(world, attempts, rows, code)
        if isinstance(grown, str):
            unplanned = grown
            break
        world = grown
    write_json(folder.root / TRUTH_FILE, {"schema": REHEARSAL_SCHEMA, **mark, "runs": truth})
    return Rehearsed(folder, world, tuple(attempts), truth, chosen_s, asked_s, unplanned)


def play_waves(world: World, *, code: Path | None = None) -> tuple[World, list[Attempt], str]:
    """The same in memory, where nothing is measured: the grown world, all attempts, and why a wave
    that was due is missing, else ''."""
    from llem.rehearsal import play

    attempts = play(world)
    while wave_is_due(world.plan):
        grown = _grown(world, attempts, _rows(world, attempts), code)
        if isinstance(grown, str):
            return world, attempts, grown
        world = grown
        attempts += play(world)
    return world, attempts, ""


def _grown(
    world: World, attempts: Sequence[Attempt], rows: Sequence[dict[str, Any]], code: Path | None
) -> World | str:
    """The world with the next wave, which begins once the last one has ended; or why there is
    none."""
    own = own_of(world.plan.campaign, code) if code is not None else None
    try:
        plan = grow_plan(world.plan, rows, own=own)
    except (InputError, BudgetError) as error:
        return f"wave {len(world.plan.waves) + 1} cannot be planned: {error}"
    return world.grown(plan, at_s=max(a.t1_s for a in attempts) + PLANNING_S)


def _rows(world: World, attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    """What an aggregation would tell of the attempts, as far as planning asks for it."""
    from llem.rehearsal import about_j

    by_run: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        by_run.setdefault(attempt.run.run_id, []).append(attempt)
    rows = []
    for run_id, own in by_run.items():
        run, last = own[-1].run, own[-1]
        trunk = max(a.trunk_steps for a in own)
        rows.append(
            {
                "run_id": run_id, "status": last.status, "params": run.params,
                "tokens": run.tokens, "loss": last.loss, "flops": run.flops,
                "gpu_seconds": math.fsum(a.window_s * a.run.layout.ranks for a in own),
                "energy_j": math.fsum(about_j(a) for a in own), "energy_quality": "counter",
                "steps_seen": run.steps - trunk, "expected_ranks": run.layout.ranks,
                "tokens_trunk": float(trunk * run.recipe.batch_tokens),
            }
        )  # fmt: skip
    return rows


def _write(folder: CampaignFolder, world: World, attempt: Attempt, *, interval_s: float) -> float:
    """The attempt's records and its end; the joules that it really used."""
    from llem.rehearsal import Measured, write_attempt

    mark, plan = world.mark(), world.plan
    measured = Measured(world, attempt, interval_s=interval_s)
    place = _begin(folder, attempt)
    write_attempt(place, measured, campaign=plan.campaign.name, digest=plan.digest, mark=mark)
    if attempt.status != "killed":
        _end(place, measured, mark)
    return measured.truth_j()


def sample_interval(attempts: Sequence[Attempt], asked_s: float) -> float:
    """The interval asked for, or that at which there are `MOST_SAMPLES`, to two digits."""
    device_s = math.fsum(a.window_s * sum(map(len, a.boards)) for a in attempts)
    return max(asked_s, float(f"{device_s / MOST_SAMPLES:.2g}"))


def _make_room(folder: CampaignFolder, *, replace_old: bool) -> None:
    root = folder.root
    if not root.exists() or not any(root.iterdir()):
        return
    if not folder.rehearsal_file.is_file():
        text = "there is something in it that is no rehearsal"
        raise InputError(str(root), [Fault("--out", text, "choose another folder")])
    if not replace_old:
        text = "holds a rehearsal"
        raise InputError(str(root), [Fault("--out", text, "--replace it, or choose another")])
    for name in ("runs", "jobs", "results"):
        shutil.rmtree(root / name, ignore_errors=True)
    folder.plan_file.unlink(missing_ok=True)


def _begin(folder: CampaignFolder, attempt: Attempt) -> Path:
    from llem.cluster.disk.attempts import begin_attempt
    from llem.rehearsal.recording import wall_ns

    meta = {
        "job_id": attempt.job_id, "array_job_id": attempt.job_id, "restart_count": attempt.restart,
        "node": attempt.nodes[0].name, "hosts": [n.name for n in attempt.nodes],
    }  # fmt: skip
    return begin_attempt(
        folder, attempt.run, layout=attempt.run.layout, log="", meta=meta,
        now_ns=lambda: wall_ns(attempt.t0_s), wait=False,
    )  # fmt: skip


def _end(place: Path, measured: Measured, mark: dict[str, Any]) -> None:
    """The end record, with the keys of a real one's."""
    from llem.cluster.disk.attempts import write_end
    from llem.rehearsal import evaluations_of
    from llem.rehearsal.recording import evaluation_loss_se, peak_memory, wall_ns
    from llem.training import Outcome
    from llem.training.schedule import phase

    attempt, world = measured.attempt, measured.world
    run, host = attempt.run, attempt.nodes[0]
    t0_ns, t1_ns = host.mono_ns(attempt.t0_s), host.mono_ns(attempt.t1_s)
    started_ns, ended_ns = wall_ns(attempt.t0_s), wall_ns(attempt.t1_s)
    head = {
        "hosts": [n.name for n in attempt.nodes], "node": host.name, "rank": 0,
        "ranks": run.layout.ranks, "host": host.name, "boot_id": host.boot_id,
        "started_ns": started_ns, "ended_ns": ended_ns, "t0_ns": t0_ns, "t1_ns": t1_ns,
        "rehearsal": mark,
    }  # fmt: skip
    values: dict[str, Any]
    if attempt.status == "failed":
        kind, _, message = attempt.reason.partition(": ")
        values = {
            "status": "failed", "cause": attempt.cause, "reason": attempt.reason,
            "error": {"type": kind, "message": message}, "start_step": attempt.start_step,
            "given_up": "",
        }  # fmt: skip
    else:
        curve, rate = measured.curve, attempt.tokens_per_s
        peak_flops = world.plan.device.peak_flops * run.layout.ranks
        last = attempt.step - 1
        told = evaluations_of(world, attempt)
        outcome = Outcome(
            status=attempt.status,  # type: ignore[arg-type]
            reason=attempt.reason,
            step=attempt.step,
            steps=run.steps,
            start_step=attempt.start_step,
            tokens=attempt.step * run.recipe.batch_tokens,
            loss=attempt.loss,
            loss_se=evaluation_loss_se(run) if attempt.status == "completed" else math.nan,
            trunk=_trunk(world, attempt),
            train_loss_first=float(curve.loss[0]),
            train_loss_last=float(curve.loss[last]) if last >= 0 else math.nan,
            resumed_from=_checkpoint(place, attempt.start_step),
            checkpoint=_checkpoint(place, attempt.saved_step),
            record="",
            t0_ns=t0_ns,
            t1_ns=t1_ns,
            wall0_ns=started_ns,
            wall1_ns=ended_ns,
            tokens_per_s=rate,
            peak_memory_bytes=peak_memory(measured),
            mfu=rate * float(run.model.flops_per_token) / peak_flops,
            evaluations=tuple(
                {
                    "step": step,
                    "tokens": step * run.recipe.batch_tokens,
                    "loss": loss,
                    "loss_se": evaluation_loss_se(run),
                    "phase": phase(run.recipe, step=step - 1, steps=run.steps).name.lower(),
                }
                for step, loss in told
            ),
        )
        values = {**outcome.to_dict(), "cause": attempt.cause}
        if attempt.status == "interrupted":
            values["given_up"] = ""
    write_end(place, run, finite_or_none({**values, **head}), wait=False)


def _trunk(world: World, attempt: Attempt) -> dict[str, Any] | None:
    """Whose steps the run began from, where it did not begin at its first."""
    if not attempt.trunk_steps:
        return None
    trunk = world.trunks[attempt.run.run_id]
    return {"run_id": trunk.run_id, "steps": attempt.trunk_steps}


def _checkpoint(place: Path, step: int) -> str | None:
    """Where the checkpoint lay; a rehearsal writes none."""
    return str(place.parent / "checkpoints" / f"step-{step:09d}") if step else None


@dataclass(frozen=True)
class Repeated:
    """What K rehearsals answered, against what was planted and what the planner promised.

    Of N* and the loss at the target, all of their logs: `bias`, `sd` and `rmse` of the estimates;
    `told_se`, the intervals' mean half width in standard errors, and `coverage`, the share that
    holds the truth, by noise alone; `allowed_se` and `allowed_coverage` with the fit's allowance
    for a law that is not quite right; `promised_se`, the plan's for noise. `failed` counts repeats
    without a law, by reason; `unidentified` those in which a parameter of the law was not
    identified. `runs` and `completed_runs` are means over those in which all waves were played,
    `gpu_hours` and `days` means and standard deviations.
    """

    repeats: int
    truth: dict[str, float]
    figures: dict[str, dict[str, float]]
    failed: dict[str, int]
    unidentified: dict[str, int]
    runs: float
    completed_runs: float
    gpu_hours: tuple[float, float]
    days: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


def repeat_rehearsal(
    make: Callable[[int], World],
    repeats: int,
    *,
    bootstrap: int = 400,
    law: str | None = None,
    code: Path | None = None,
    watch: Callable[[int, int], None] | None = None,
) -> Repeated:
    """Play a plan `repeats` times in memory, all of its waves, and fit each; `make(k)` is the k-th
    world, and `code` as for `rehearse`.

    Only the fit's inputs are made: N, D, FLOP and the loss of what completed. Raises InputError
    where not even one repeat gives a law's optimum.
    """
    import numpy as np

    from llem.scaling import FlopsModel, Target

    plan = make(0).plan
    planted = make(0).planted
    target = float(plan.head()["design"]["target_flops"])
    rows: list[dict[str, Any]] = []
    failed: dict[str, int] = {}
    unidentified: dict[str, int] = {}
    hours, days, planned, completed = [], [], [], []
    model: FlopsModel | None = None
    for k in range(repeats):
        world, attempts, unplanned = play_waves(make(k), code=code)
        if unplanned:
            failed[unplanned] = failed.get(unplanned, 0) + 1
            continue
        hours.append(device_hours(attempts))
        days.append((max(a.t1_s for a in attempts)) / 86400)
        done = [a for a in attempts if a.status == "completed"]
        planned.append(len(world.plan.runs))
        completed.append(len(done))
        try:
            fit = _fit(done, law or plan.campaign.law, bootstrap=bootstrap, seed=k)
        except Exception as error:
            from llem.scaling import ScalingDataError

            if not isinstance(error, ScalingDataError):
                raise
            reason = str(error).splitlines()[-1].strip()
            failed[reason] = failed.get(reason, 0) + 1
            continue
        for name, why in fit.identification.items():
            if why:
                unidentified[name] = unidentified.get(name, 0) + 1
        # By noise alone, and with what `llem fit` adds for a law that is not quite right.
        best = replace(fit.ensemble, exponent_error=0.0).at(Target(target), brief=True)
        wide = fit.ensemble.at(Target(target), brief=True)
        model = fit.flops_model
        rows.append({"params": best.params, "loss": best.loss, "ci": best.ci, "wide": wide.ci})
        if watch is not None:
            watch(k + 1, repeats)
    if not rows or model is None:
        told = ", ".join(f"{reason} ({n})" for reason, n in failed.items())
        raise InputError("rehearsal", [f"no repeat gave a law: {told}"])
    natural = planted.law.natural(planted.params)
    log_n, log_d = planted.law.optimum(natural, target, model)
    true = {"params": float(np.exp(log_n)), "loss": float(planted.law.loss(natural, log_n, log_d)),
            "target_flops": target}  # fmt: skip
    return Repeated(
        repeats=repeats,
        truth=true,
        figures={
            "params": _figures(rows, "params", true["params"],
                               promised=plan.promise.get("predicted_se_log_params")),
            "loss": _figures(rows, "loss", true["loss"],
                             promised=plan.promise.get("predicted_se_loss")),
        },
        failed=failed,
        unidentified=unidentified,
        runs=float(np.mean(planned)),
        completed_runs=float(np.mean(completed)),
        gpu_hours=(float(np.mean(hours)), float(np.std(hours))),
        days=(float(np.mean(days)), float(np.std(days))),
    )  # fmt: skip


def device_hours(attempts: Sequence[Attempt]) -> float:
    """What jobs held their devices for, from each one's start to its last run's end."""
    jobs: dict[tuple[str, int, int], tuple[float, float, int]] = {}
    for a in attempts:
        key = a.array, a.element, a.restart
        _, end, _ = jobs.get(key, (0.0, 0.0, 0))
        jobs[key] = (a.began_s, max(end, a.t1_s), a.run.layout.ranks)
    return math.fsum((end - began) * ranks for began, end, ranks in jobs.values()) / 3600


def _fit(done: Sequence[Attempt], law: str, *, bootstrap: int, seed: int) -> Any:
    from llem.scaling import fit_law

    return fit_law(
        [a.run.params for a in done], [a.run.tokens for a in done], [a.loss for a in done],
        law=law, flops=[a.run.flops for a in done], run_id=[a.run.run_id for a in done],
        bootstrap=bootstrap, seed=seed,
    )  # fmt: skip


def _figures(
    rows: Sequence[dict[str, Any]], name: str, true: float, *, promised: float | None
) -> dict[str, float]:
    """Errors of the logs of one figure's estimates, and its intervals."""
    import numpy as np

    off = np.log([row[name] for row in rows]) - math.log(true)

    def told(kind: str) -> tuple[float, float]:
        pairs = np.array([row[kind][name] for row in rows], dtype=float)
        known = (np.isfinite(pairs) & (pairs > 0)).all(axis=1)
        held = (pairs[:, 0] <= true) & (true <= pairs[:, 1]) & known
        widths = np.log(pairs[known, 1] / pairs[known, 0]) / (2 * 1.96)
        return float(widths.mean()) if known.any() else math.nan, float(held.mean())

    (se, held), (wide_se, wide_held) = told("ci"), told("wide")
    return {
        "bias": float(off.mean()),
        "sd": float(off.std(ddof=1)) if len(off) > 1 else math.nan,
        "rmse": float(np.sqrt((off**2).mean())),
        "told_se": se,
        "coverage": held,
        "allowed_se": wide_se,
        "allowed_coverage": wide_held,
        "promised_se": math.nan if promised is None else float(promised),
    }
