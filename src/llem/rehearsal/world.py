"""What a rehearsal is played in: the plan, the planted law, the machines, each run's luck."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from llem.campaign import Run
from llem.planning import Accelerator, Plan
from llem.planning.layout import computed_flops
from llem.rehearsal.curve import Curve, make_curve
from llem.rehearsal.fleet import Node, make_fleet
from llem.rehearsal.planted import Planted

# Of a site's whole machine, so many nodes are played at most, unless one run takes more.
NODES = 64
# How far the site as a whole is off the planner's step times, sd of the log. The planner's own
# error before a calibration is larger; its time limits would then be what is rehearsed.
SITE_SD = 0.05
# Noise of log loss from run to run, unless another is asked for: what the best published campaigns
# show about their law. The planner's promise assumes more until runs have shown it
# (`planning.scatter`).
NOISE = 0.005


@dataclass(frozen=True, kw_only=True)
class Failures:
    """What goes wrong, as chances of an attempt (of a run, for divergence; of an attempt's node,
    for meters). On a laptop nobody preempts and nodes do not fail."""

    preemption: float = 0.03
    node_failure: float = 0.02
    exception: float = 0.01
    divergence: float = 0.01
    meter: float = 0.01
    stragglers: bool = True

    @classmethod
    def none(cls) -> Failures:
        return cls(preemption=0.0, node_failure=0.0, exception=0.0, divergence=0.0,
                   meter=0.0, stragglers=False)  # fmt: skip


@dataclass(frozen=True)
class Fate:
    """How a run's training goes, whatever machine it is on: its final loss without interruption,
    and whether it diverges."""

    loss: float
    diverges: bool


@dataclass(frozen=True)
class Begin:
    """Where a wave begins: so many arrays and runs of the plan are before it, at `at_s`."""

    arrays: int = 0
    runs: int = 0
    at_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class World:
    """A plan and all that is drawn from `seed` to play it.

    A plan grows by waves (`grown`), each of which begins when those before it have ended; `machine`
    stays what it was, whatever a wave's plan has learnt of it.
    """

    plan: Plan
    planted: Planted
    seed: int = 0
    noise: float = NOISE
    failures: Failures = field(default_factory=Failures)
    begins: tuple[Begin, ...] = (Begin(),)
    machine: Accelerator | None = None

    @property
    def device(self) -> Accelerator:
        """What is really there; the plan's may be what it thinks by now."""
        return self.machine or self.plan.device

    def grown(self, plan: Plan, *, at_s: float) -> World:
        """The same world with one more wave, of which nothing is played yet."""
        begin = Begin(len(self.plan.arrays), len(self.plan.runs), at_s)
        return replace(self, plan=plan, begins=(*self.begins, begin), machine=self.device)

    def wave_at(self, t_s: float) -> tuple[int, int]:
        """The newest wave that was planned by then, from 1, and how many runs that made in all."""
        begun = sum(begin.at_s <= t_s for begin in self.begins)
        earlier = len(self.plan.waves) - len(self.begins)
        later = self.begins[begun:]
        return earlier + begun, later[0].runs if later else len(self.plan.runs)

    @cached_property
    def trunks(self) -> dict[str, Run]:
        """By the names of runs that branch off another one: that one."""
        return {
            run.branch(steps).run_id: run
            for some in self.plan.runs.replicates
            if some.run.branch_at
            for run in some
            for steps in run.branch_at
        }

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        plan, site = self.plan, self.plan.site
        if self.device.cpu:
            count = site.concurrency if site.executor == "local" else site.nodes
        else:
            count = site.nodes
        most = max(array.nodes for array in plan.arrays)
        wanted = sum(array.nodes * len(array.elements) for array in plan.arrays)
        count = max(most, min(count, NODES, wanted))
        fleet = make_fleet(site, self.device, nodes=count, seed=self.seed)
        if self.failures.stragglers:
            return fleet
        return tuple(
            replace(n, boards=tuple(replace(b, speed=1.0, straggles=False) for b in n.boards))
            for n in fleet
        )

    @cached_property
    def site_factor(self) -> float:
        """How much longer steps take here than the planner thinks."""
        rng = np.random.default_rng([self.seed, 3])
        return math.exp(SITE_SD * rng.normal() - SITE_SD**2 / 2)

    def rng(self, run: Run, *more: int) -> np.random.Generator:
        """Random numbers that only this run (and `more`) get, in whatever order runs are played."""
        return np.random.default_rng([self.seed, 4, int(run.run_id, 16), *more])

    def fate(self, run: Run) -> Fate:
        luck, lot = self._lots(run)
        diverges = lot < self.failures.divergence
        if trunk := self.trunks.get(run.run_id):
            # Luck gathers step by step: a branch has its trunk's for the steps that they share.
            shared = run.trunk_steps / run.steps
            luck = math.sqrt(shared) * self._lots(trunk)[0] + math.sqrt(1 - shared) * luck
            diverges = diverges or self._parts_late(run, trunk)
        return Fate(loss=self.planted.loss(run) * math.exp(self.noise * luck), diverges=diverges)

    def _lots(self, run: Run) -> tuple[float, float]:
        """The run's luck in standard deviations, and its lot for divergence."""
        rng = self.rng(run)
        return float(rng.normal()), float(rng.random())

    def _parts_late(self, run: Run, trunk: Run) -> bool:
        """Whether the trunk runs away before the branch leaves it."""
        if not self.fate(trunk).diverges:
            return False
        diverged = self.curve(trunk).diverged
        return diverged is not None and diverged[0] <= run.trunk_steps

    def curve(self, run: Run) -> Curve:
        """The run's steps; up to where it branches off another run, that one's."""
        fate, trunk = self.fate(run), self.trunks.get(run.run_id)
        return make_curve(
            self.planted, run, final=fate.loss, seed=self.seed, diverges=fate.diverges,
            trunk=None if trunk is None else self.curve(trunk),
        )  # fmt: skip

    def step_s(self, run: Run) -> float:
        """Mean seconds of a step on boards of the site's mean speed."""
        device, layout = self.device, run.layout
        flops = computed_flops(run.model, layout) * run.recipe.batch_tokens
        work = flops / (layout.ranks * device.peak_flops * device.utilisation)
        return (work + device.step_overhead_s * layout.grad_accum) * self.site_factor

    def evaluation_s(self, run: Run) -> float:
        """The same of an evaluation: forward passes alone, a third of a training's work."""
        device = self.device
        tokens = int(getattr(run.data, "evaluation_tokens", 0) or 0)
        work = tokens * float(run.model.flops_per_token) / 3
        peak = run.layout.ranks * device.peak_flops * device.utilisation
        return self.site_factor * work / peak

    def mark(self) -> dict[str, Any]:
        """What every file of the rehearsal says of it."""
        return {"law": self.planted.text, "name": self.planted.name, "seed": self.seed,
                "noise": self.noise}  # fmt: skip
