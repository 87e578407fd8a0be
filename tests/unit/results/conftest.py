"""Plants campaigns: folders with records written by the real writers, whose truth is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llem.records import RecordWriter, node_writer, rank_writer, samples_table

SECOND = 1_000_000_000
BOOT = "boot-a"
# Far from zero, as on a machine that has been up for 116 days: float seconds would lose ns here.
T0_NS = 10_000_000 * SECOND + 123
WALL_NS = 1_750_000_000 * SECOND


@dataclass(frozen=True)
class Host:
    """A pretended machine: its monotonic clock and how its wall clock is off."""

    name: str = "n0"
    boot_id: str = BOOT
    mono_ns: int = T0_NS
    wall_error_ns: int = 0

    def at(self, seconds: float) -> int:
        """Monotonic nanoseconds at `seconds` after the beginning of the test's world."""
        return self.mono_ns + round(seconds * SECOND)

    def stamps(self) -> list[tuple[int, int, float, float]]:
        return [
            (self.at(s), WALL_NS + self.wall_error_ns + round(s * SECOND), math.nan, math.nan)
            for s in (0.0, 1000.0)
        ]


def _own_clock(writer: RecordWriter, host: Host) -> None:
    """Replace the writer's own first stamp by the pretended machine's."""
    writer._file["clock"].resize((0,))
    writer._tables["clock"]._rows = 0
    for stamp in host.stamps():
        writer.append("clock", stamp)


@dataclass
class Planted:
    """A campaign folder under construction."""

    folder: Path
    runs: list[dict[str, Any]] = field(default_factory=list)
    site: dict[str, Any] = field(default_factory=dict)

    def run(self, run_id: str = "aaaa", *, steps: int = 10, nodes: int = 1, per_node: int = 1,
            batch_tokens: int = 1000, **more: Any) -> str:  # fmt: skip
        self.runs.append(
            {
                "run_id": run_id,
                "params": 5000,
                "params_nonembedding": 4000,
                "tokens": steps * batch_tokens,
                "flops": 6.0 * 5000 * steps * batch_tokens,
                "seed": 1,
                "level": 0,
                "steps": steps,
                "layout": {"nodes": nodes, "gpus_per_node": per_node},
                "workload": "training",
                **more,
            }
        )
        self.folder.mkdir(exist_ok=True)
        plan = {"runs": self.runs, "site": self.site}
        (self.folder / "plan.json").write_text(json.dumps(plan))
        return run_id

    def attempt(self, run_id: str = "aaaa", number: int = 0) -> Path:
        path = self.folder / "runs" / run_id / f"attempt-{number}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def rank(self, run_id: str = "aaaa", number: int = 0, *, rank: int = 0, world: int = 1,
             host: Host = Host(), steps: Sequence[int] = range(1, 11), tokens: int = 1000,
             unique: Sequence[int] = (),
             start_s: float = 1.0, step_s: float = 1.0,
             loss: tuple[float, float] | None = (3.0, 0.01), eval_step: int | None = None,
             **meta: Any) -> Path:  # fmt: skip
        path = self.attempt(run_id, number) / f"rank-{rank:05d}.h5"
        values = {"run_id": run_id, "attempt": number, "rank": rank, "world": world,
                  "host": host.name, "boot_id": host.boot_id, **meta}  # fmt: skip
        with rank_writer(path, meta=values) as writer:
            _own_clock(writer, host)
            for i, step in enumerate(steps):
                t0, t1 = host.at(start_s + i * step_s), host.at(start_s + (i + 1) * step_s)
                new = unique[i] if unique else tokens
                row = (step, t0, t1, tokens, new, 3.5, 1.0, 1e-3, math.nan, math.nan, 1)
                writer.append("steps", row)
            if loss is not None and rank == 0:
                last = eval_step if eval_step is not None else max(steps)
                end = host.at(start_s + len(steps) * step_s)
                writer.append("evals", (last, end, end, *loss, 5000))
        return path

    def node(self, run_id: str = "aaaa", number: int = 0, *, host: Host = Host(),
             name: str | None = None, devices: Sequence[str] = ("GPU-0",),
             power_w: Callable[[str, float], float] = lambda _uuid, _s: 100.0,
             from_s: float = 0.0, to_s: float = 12.0, interval_s: float = 0.1,
             attrs: Mapping[str, Any] | None = None,
             energy_at: Callable[[float], float] | None = None,
             idle_w: float | None = None, **meta: Any) -> Path:  # fmt: skip
        """`power_w(uuid, seconds)` is integrated exactly where it is constant over an interval;
        `energy_at(seconds)` in joules replaces the counter."""
        path = self.attempt(run_id, number) / f"node-{name or host.name}.h5"
        values = {"run_id": run_id, "attempt": number, "host": host.name,
                  "boot_id": host.boot_id, **meta}  # fmt: skip
        kind = {"domain": "gpu", "contains": [], "counter": True, "source": "nvml",
                "quality": "counter", "name": "pretended", **(attrs or {})}  # fmt: skip
        with node_writer(path, meta=values, devices=dict.fromkeys(devices, kind)) as writer:
            _own_clock(writer, host)
            if idle_w is not None:
                for uuid in devices:
                    writer.append(
                        "baseline",
                        (uuid.encode(), idle_w * 1e3, 100, 100.0, host.at(-6), host.at(-1), 0),
                    )
            for uuid in devices:
                joules = 5000.0
                for i in range(round((to_s - from_s) / interval_s) + 1):
                    s = from_s + i * interval_s
                    if i:
                        joules += power_w(uuid, s - interval_s / 2) * interval_s
                    energy = energy_at(s) if energy_at else joules
                    mj = energy * 1e3 if kind["counter"] else math.nan
                    row = (host.at(s), 1000, mj, power_w(uuid, s) * 1e3, 40, 90, 1400, 0, 0)
                    writer.append(samples_table(uuid), row)
        return path

    def end(self, run_id: str = "aaaa", number: int = 0, *, status: str = "completed",
            window_s: tuple[float, float] = (1.0, 11.0), host: Host = Host(), ranks: int = 1,
            step: int = 10, tokens: float | None = None, **more: Any) -> Path:  # fmt: skip
        path = self.attempt(run_id, number) / "end.json"
        values = {
            "schema": "llem-end-1", "run_id": run_id, "attempt": number, "status": status,
            "reason": "", "step": step, "steps": step, "tokens": tokens,
            "t0_ns": host.at(window_s[0]), "t1_ns": host.at(window_s[1]),
            "host": host.name, "boot_id": host.boot_id, "hosts": [host.name], "ranks": ranks,
            **more,
        }  # fmt: skip
        path.write_text(json.dumps(values))
        return path

    def complete(self, run_id: str = "aaaa", **run: Any) -> str:
        """A run with one completed attempt of 10 s on a device of its own, of 100 W."""
        self.run(run_id, **run)
        self.rank(run_id)
        self.node(run_id, devices=[f"GPU-of-{run_id}"])
        self.end(run_id)
        return run_id


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path / "campaign")


@pytest.fixture
def host() -> type[Host]:
    return Host


@pytest.fixture
def own_clock() -> Callable[[RecordWriter, Host], None]:
    return _own_clock
