"""One run on one rank: read, step, record, watch, checkpoint, evaluate."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llem.campaign import Run, SampleData
from llem.errors import Fault, InputError
from llem.records import Phase, host_meta
from llem.training.callbacks import Callback, Callbacks
from llem.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    delete_leftovers,
    find_checkpoint,
    find_whole,
    load_checkpoint,
    save_checkpoint,
)
from llem.training.clocks import tie_clock
from llem.training.divergence import DivergenceWatch
from llem.training.engines.engine import Engine, TorchEngine
from llem.training.evaluation import evaluate
from llem.training.memory import PeakMemory, largest
from llem.training.outcome import Evaluated, Outcome, Progress, ShouldStop, Status
from llem.training.pulse import Beat, Counter, NoCounter, Pulse
from llem.training.recording import Recording
from llem.training.schedule import learning_rate, phase
from llem.training.task import Task, TokenTask
from llem.training.tokens.data import Share, share_of
from llem.training.world import World, versions

PROGRESS_INTERVAL_S = 1.0


def train(
    run: Run,
    *,
    attempt_dir: str | Path,
    checkpoints_dir: str | Path,
    world: World,
    meta: Mapping[str, Any],
    callbacks: Sequence[Callback] = (),
    should_stop: ShouldStop | None = None,
    final_checkpoint: bool = False,
    counter: Counter | None = None,
    task: Task | None = None,
    forks: Mapping[int, Path] | None = None,
    peak_flops: float = math.nan,
) -> Outcome:
    """Train `run` from its newest checkpoint to its end; called by every rank of `world`.

    Writes `attempt_dir/rank-*.h5`, with `meta` among its attributes. `should_stop` is asked after
    each step on every rank; where one has a reason, all write a checkpoint and return. Checkpoints
    of a run that ended are the caller's to delete (`delete_checkpoints`), once its end is on disk;
    `final_checkpoint` adds one after the last step. `counter` is what each step is stamped with:
    its device's energy counter. `task` is what is trained: by default what the run itself names.
    `forks` are folders by length, in steps, of the branches among `run.branch_at` that are left a
    checkpoint. `callbacks` are told on rank 0 how it goes; `peak_flops` is one device's FLOP/s, NaN
    where not known.

    Raises InputError, on every rank, where data, model, layout or checkpoint do not fit the run.
    """
    began_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    attempt, checkpoints = Path(attempt_dir), Path(checkpoints_dir)
    share = _check(run, world)
    task = task or _task_of(run, world)
    world.first(task.verify)
    task.open()
    world.first(lambda: attempt.mkdir(parents=True, exist_ok=True))
    if run.layout.zero_stage:
        from llem.training.engines.deepspeed import import_deepspeed

        # Before memory is measured: the libraries are no part of the run.
        import_deepspeed()
    memory = PeakMemory(world.device)
    engine = _build(run, world, attempt, task)
    counter = counter or NoCounter()
    try:
        path = attempt / f"rank-{world.rank:05d}.h5"
        own_meta = {**_own_meta(run, world), "device_uuid": world.device_uuid or counter.uuid}
        own = Recording(path, meta={**own_meta, **meta}, rank=world.rank)
        with closing(own) as record:
            record.event("stamps", counter.reason or f"the energy counter of {counter.uuid}")
            trainer = _Trainer(
                run=run,
                world=world,
                engine=engine,
                memory=memory,
                counter=counter,
                task=task,
                share=share,
                record=record,
                attempt=attempt,
                checkpoints=checkpoints,
                final_checkpoint=final_checkpoint,
                callbacks=Callbacks(callbacks if world.main else (), record=record),
                should_stop=should_stop,
                forks=forks or {},
                peak_flops=peak_flops,
            )
            trainer.callbacks.on_start(run, {**own_meta, **meta})
            outcome = trainer.run_to_end(began_ns=began_ns, wall_ns=wall_ns)
            trainer.callbacks.on_end(outcome)
            return outcome
    finally:
        engine.close()


def _task_of(run: Run, world: World) -> Task:
    if isinstance(run.data, SampleData):
        from llem.training.samples.samples import SampleTask

        return SampleTask(run, world)
    return TokenTask(run, world)


def _check(run: Run, world: World) -> Share:
    faults = [
        Fault(name, f"the run asks for {asked!r}, its ranks were started with {have!r}")
        for name, asked, have in (
            ("layout.zero_stage", run.layout.zero_stage, world.zero_stage),
            ("recipe.precision", run.recipe.precision, world.precision),
        )
        if asked != have
    ]
    sharded = run.layout.zero_stage or run.layout.sharding != "zero"
    if run.recipe.optimiser == "muon" and sharded:
        text = "muon needs each matrix whole, and the layout shards them"
        hint = "layout zero_stage: 0 and sharding: zero, or adamw"
        faults.append(Fault("recipe.optimiser", text, hint))
    if faults:
        raise InputError(f"run {run.run_id}", faults)
    return share_of(run, rank=world.rank, ranks=world.world_size)


def _build(run: Run, world: World, attempt: Path, task: Task) -> Engine:
    """The engine of the run's layout; what it is told is written beside the records."""
    if run.layout.zero_stage:
        from llem.training.engines.deepspeed import DeepSpeedEngine, write_config

        world.first(lambda: write_config(run, attempt))
        return DeepSpeedEngine(run, world, task)
    # One rank has nothing to shard.
    if run.layout.sharding == "fsdp2" and world.grouped:
        from llem.training.engines import fsdp2

        world.first(lambda: fsdp2.write_config(run, attempt))
        return fsdp2.ShardedEngine(run, world, task)
    return TorchEngine(run, world, task)


def _own_meta(run: Run, world: World) -> dict[str, Any]:
    return {
        **host_meta(),
        "run_id": run.run_id,
        "rank": world.rank,
        "local_rank": world.local_rank,
        "world_size": world.world_size,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "image_digest": os.environ.get("LLEM_IMAGE_DIGEST", ""),
        "steps_planned": run.steps,
    }


@dataclass(kw_only=True)
class _Trainer:
    """The state of one attempt; `step` counts finished steps."""

    run: Run
    world: World
    engine: Engine
    memory: PeakMemory
    counter: Counter
    task: Task
    share: Share
    record: Recording
    attempt: Path
    checkpoints: Path
    final_checkpoint: bool
    callbacks: Callbacks
    should_stop: ShouldStop | None
    forks: Mapping[int, Path]
    peak_flops: float

    def __post_init__(self) -> None:
        self.watch = DivergenceWatch(self.run.recipe)
        self.stamps_reason = self.counter.reason
        self.pulse = Pulse(self.world, read_mj=self.counter.read)
        self.step = 0
        self.start_step = 0
        self.diverged: str | None = None
        self.stopping = False
        self.stop_reason: str | None = None
        self.first_loss = self.last_loss = math.nan
        self.steps_t0_ns = self.steps_t1_ns = 0
        self.steps_e0_mj = math.nan
        self.next_progress_ns = 0
        self.saved: Path | None = None
        self.unsaved = ""
        self.evaluations: dict[int, Evaluated] = {}
        self.trunk: dict[str, Any] | None = None
        # Of each step under way: rate, tokens, unique tokens.
        self.under_way: dict[int, tuple[float, int, int]] = {}

    def run_to_end(self, *, began_ns: int, wall_ns: int) -> Outcome:
        resumed = self._resume()
        tie_clock(self.record, self.world)
        self._steps()
        status, reason, loss, loss_se = self._end()
        peak = self.memory.read()
        self.record.event("memory", peak.told())
        peak_bytes, peak_reason = largest(peak, self.world)
        if self.counter.reason != self.stamps_reason:
            self.record.event("stamps", self.counter.reason)
        self.record.event(status, reason)
        tie_clock(self.record, self.world)
        self.record.stamp_clock()
        self.record.flush()
        # Also a barrier: every rank has its result on disk when rank 0 tells the run's end.
        problems = self.world.gather_text(self.record.problem or None)
        return Outcome(
            status=status,
            reason=reason,
            step=self.step,
            steps=self.run.steps,
            start_step=self.start_step,
            tokens=self.step * self.run.recipe.batch_tokens,
            loss=loss,
            loss_se=loss_se,
            train_loss_first=self.first_loss,
            train_loss_last=self.last_loss,
            resumed_from=str(resumed.path) if resumed else None,
            checkpoint=str(self.saved) if self.saved else None,
            record="; ".join(f"rank {i}: {text}" for i, text in enumerate(problems) if text),
            t0_ns=began_ns,
            t1_ns=time.monotonic_ns(),
            wall0_ns=wall_ns,
            wall1_ns=time.time_ns(),
            tokens_per_s=self._tokens_per_s(),
            peak_memory_bytes=peak_bytes,
            peak_memory_reason=peak_reason,
            mfu=self._mfu(),
            evaluations=tuple(self.evaluations[step] for step in sorted(self.evaluations)),
            trunk=self.trunk,
        )

    def _resume(self) -> Checkpoint | None:
        found = find_whole(self.checkpoints, world=self.world, run_id=self.run.run_id)
        for skipped in found.skipped:
            self.record.event("checkpoint-skipped", skipped)
        if self.world.main:
            delete_leftovers(self.checkpoints)
        checkpoint = found.checkpoint
        if checkpoint is None:
            return None
        load_checkpoint(checkpoint, engine=self.engine, world=self.world)
        self.step = self.start_step = checkpoint.step
        self.watch.restore(checkpoint.loop["watch"])
        self.first_loss = checkpoint.loop["first_loss"]
        self.last_loss = checkpoint.loop["last_loss"]
        self.evaluations = {told["step"]: told for told in checkpoint.loop["evaluations"]}
        self.trunk = checkpoint.loop["trunk"]
        self.saved = checkpoint.path
        self.record.event("resume", f"after step {checkpoint.step}, from {checkpoint.path.name}")
        return checkpoint

    def _steps(self) -> None:
        run, recipe = self.run, self.run.recipe
        partings = self._partings()
        while self.step < run.steps:
            if self.step in run.evaluate_at or self.step in partings:
                self._take(self.pulse.receive(all_steps=True))
                if self.diverged:
                    return
                self._evaluate_here()
                for branch, folder in partings.get(self.step, ()):
                    self._fork(branch, folder)
            step = self.step
            began = self.pulse.start()
            if self.task.draws:
                # Of seed, step and rank alone, so that no checkpoint has to hold a generator.
                place = step * self.world.world_size + self.world.rank
                self.world.seed((run.seed * 1_000_000_007 + place) % 2**63)
            batch = self.task.batch(step, self.share)
            rate = learning_rate(recipe, step=step, steps=run.steps)
            loss, norm = self.engine.step(batch, rate)
            if self.should_stop is not None and self.stop_reason is None:
                self.stop_reason = self.should_stop()
            self.under_way[step] = (rate, batch.tokens, batch.tokens_unique)
            self.pulse.send(
                step,
                began=began,
                loss=loss,
                grad_norm=norm,
                stop=self.stop_reason is not None,
            )
            self.step += 1
            self._take(self.pulse.receive())
            due = run.checkpoint_steps > 0 and self.step % run.checkpoint_steps == 0
            if due or self.stopping or self.diverged or self.step == run.steps:
                self._take(self.pulse.receive(all_steps=True))
                if self.diverged:
                    return
                if (due or self.stopping) and self.step < run.steps:
                    self._save()
                if self.stopping:
                    return

    def _take(self, beats: list[Beat]) -> None:
        """Record steps that are known to be finished; every rank concludes the same from them."""
        for beat in beats:
            rate, tokens, unique = self.under_way.pop(beat.step)
            kind = phase(self.run.recipe, step=beat.step, steps=self.run.steps)
            self.record.append(
                "steps",
                (beat.step, beat.t0_ns, beat.t1_ns, tokens, unique, beat.loss, beat.grad_norm,
                 rate, beat.e0_mj, beat.e1_mj, int(kind)),
            )  # fmt: skip
            if not self.steps_t0_ns:
                self.steps_t0_ns, self.steps_e0_mj = beat.t0_ns, beat.e0_mj
            self.steps_t1_ns = beat.t1_ns
            if math.isnan(self.first_loss):
                self.first_loss = beat.loss_all
            self.last_loss = beat.loss_all
            self.stopping = self.stopping or beat.stopping > 0
            self.diverged = self.diverged or self.watch.check(beat.step, beat.loss_all)
            last = beat.step + 1 == self.run.steps
            if beat.t1_ns >= self.next_progress_ns or last:
                self.next_progress_ns = beat.t1_ns + round(PROGRESS_INTERVAL_S * 1e9)
                self.callbacks.on_step(self._progress(beat, rate))

    def _progress(self, beat: Beat, rate: float) -> Progress:
        return Progress(
            step=beat.step + 1,
            steps=self.run.steps,
            start_step=self.start_step,
            loss=beat.loss_all,
            tokens_per_s=self._tokens_per_s(beat.step + 1),
            tokens=(beat.step + 1) * self.run.recipe.batch_tokens,
            learning_rate=rate,
            grad_norm=beat.grad_norm,
            mfu=self._mfu(beat.step + 1),
            energy_j=(beat.e1_mj - self.steps_e0_mj) / 1e3,
        )

    def _tokens_per_s(self, step: int | None = None) -> float:
        steps = (self.step if step is None else step) - self.start_step
        elapsed_ns = self.steps_t1_ns - self.steps_t0_ns
        if not steps or not elapsed_ns:
            return math.nan
        return steps * self.run.recipe.batch_tokens / (elapsed_ns / 1e9)

    def _mfu(self, step: int | None = None) -> float:
        """The model's FLOP/s as a part of what all devices could do (arXiv 2204.02311, app. B)."""
        flops_per_s = self._tokens_per_s(step) * self.run.model.flops_per_token
        return flops_per_s / (self.peak_flops * self.world.world_size)

    def _evaluate_here(self) -> None:
        """The held-out loss where the run asks for it; a step that is done is not done again.

        Before the end of its schedule it is no result: the rate has not come down.
        """
        if self.step not in self.run.evaluate_at or self.step in self.evaluations:
            return
        found = self.evaluations[self.step] = self._evaluate()
        if self.world.main:
            text = (
                f"after step {self.step} of {self.run.steps}, phase {found['phase']}: "
                f"{found['loss']:.6g}"
            )
            self.record.event("evaluation", text)

    def _evaluate(self) -> Evaluated:
        t0_ns = time.monotonic_ns()
        with self._span(Phase.EVALUATION):
            found = evaluate(self.engine, self.task, self.world)
        if found.parts:
            each = "; ".join(map(str, found.parts))
            self.record.event("evaluation", f"after step {self.step}: {each}")
        t1_ns = time.monotonic_ns()
        if self.world.main:
            self.record.append(
                "evals", (self.step, t0_ns, t1_ns, found.loss, found.loss_se, found.tokens)
            )
        told: Evaluated = {
            "step": self.step,
            "tokens": self.step * self.run.recipe.batch_tokens,
            "loss": found.loss,
            "loss_se": found.loss_se,
            "phase": phase(self.run.recipe, step=self.step - 1, steps=self.run.steps).name.lower(),
        }
        self.callbacks.on_evaluation(told)
        return told

    def _partings(self) -> dict[int, list[tuple[Run, Path]]]:
        """By the step at which it parts from this run: each branch, and its checkpoints' folder."""
        found: dict[int, list[tuple[Run, Path]]] = {}
        for steps in self.run.branch_at:
            branch = self.run.branch(steps)
            if steps in self.forks and branch.trunk_steps > 0:
                found.setdefault(branch.trunk_steps, []).append((branch, self.forks[steps]))
        return found

    def _fork(self, branch: Run, folder: Path) -> None:
        """Leave a branch what it begins from; without it, it begins at its first step."""
        known = self.world.first(lambda: find_checkpoint(folder, run_id=branch.run_id))
        if known.checkpoint is not None:
            return
        loop = {
            **self._loop(),
            "evaluations": [],
            "trunk": {"run_id": self.run.run_id, "steps": self.step},
        }
        try:
            self._write(folder, branch.run_id, loop)
        except CheckpointError as error:
            self.record.event("fork-failed", f"after step {self.step}: {error.message}")
            return
        self.record.event("fork", f"after step {self.step}, for run {branch.run_id}")

    def _loop(self) -> dict[str, Any]:
        """What a checkpoint holds of the loop itself."""
        return {
            "watch": self.watch.state(),
            "first_loss": self.first_loss,
            "last_loss": self.last_loss,
            "evaluations": list(self.evaluations.values()),
            "trunk": self.trunk,
        }

    def _write(self, folder: Path, run_id: str, loop: Mapping[str, Any]) -> Path:
        """A checkpoint of this step, for this run or one that goes on from here."""
        with self._span(Phase.CHECKPOINT):
            return save_checkpoint(
                folder,
                engine=self.engine,
                world=self.world,
                run_id=run_id,
                attempt=self.attempt,
                step=self.step,
                loop=loop,
            )

    def _save(self) -> None:
        """Write a checkpoint; one that cannot be written costs what is lost without it, no more."""
        t0_ns = time.monotonic_ns()
        try:
            self.saved = self._write(self.checkpoints, self.run.run_id, self._loop())
        except CheckpointError as error:
            self.unsaved = error.message
            self.record.event("checkpoint-failed", f"after step {self.step}: {error.message}")
            if self.world.main:
                print(f"llem: no checkpoint after step {self.step}: {error.message}", flush=True)
            return
        self.unsaved = ""
        took_s = (time.monotonic_ns() - t0_ns) / 1e9
        self.record.event("checkpoint", f"after step {self.step}, in {took_s:.3f} s")

    @contextmanager
    def _span(self, phase: Phase) -> Iterator[None]:
        """Record the time and energy of what is no step, also where it fails."""
        t0_ns, e0_mj = self.pulse.start()
        try:
            yield
        finally:
            t1_ns, e1_mj = self.pulse.start()
            self.record.append("spans", (self.step, t0_ns, t1_ns, e0_mj, e1_mj, int(phase)))

    def _end(self) -> tuple[Status, str, float, float]:
        if self.diverged:
            return "diverged", self.diverged, math.nan, math.nan
        if self.step < self.run.steps:
            reasons = self.world.gather_text(self.stop_reason)
            first = next((reason for reason in reasons if reason), "a rank was asked to stop")
            if self.unsaved:
                first += f"; its checkpoint could not be written: {self.unsaved}"
            return "interrupted", first, math.nan, math.nan
        found = self._evaluate()
        loss, loss_se = found["loss"], found["loss_se"]
        if not math.isfinite(loss):
            return "diverged", f"the evaluation loss is {loss}", math.nan, math.nan
        if self.final_checkpoint:
            self._save()
        return "completed", "", loss, loss_se
