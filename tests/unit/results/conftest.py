"""Plants campaigns: folders with records written by the real writers, whose truth is known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llem.records import Phase, RecordWriter, node_writer, rank_writer, samples_table

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


@dataclass(frozen=True)
class Course:
    """What a served run does when, in seconds of the test's world, all in steps of 0.1 s so that
    the planted power is constant between samples: load from 0, warm-up, settling, then batches.

    The requests of a batch arrive where it begins, or all `at_once`. A batch ends with `host_s` of
    work on answers that are given: idle, unless others wait.
    """

    batches: int = 3
    batch: int = 4
    tokens_in: int = 16
    tokens_out: int = 5
    host_s: float = 0.1
    prefill_s: float = 0.4
    decode_s: float = 0.2
    idle_s: float = 0.0
    at_once: bool = False
    begin_s: float = 3.0
    watts: Mapping[str, float] = field(
        default_factory=lambda: {
            "load": 80.0, "warmup": 250.0, "settle": 60.0, "prefill": 300.0, "decode": 200.0,
            "serve": 120.0, "idle": 70.0, "rest": 50.0,
        }
    )  # fmt: skip

    @property
    def of_batch_s(self) -> float:
        return 2 * self.host_s + self.prefill_s + (self.tokens_out - 1) * self.decode_s

    @property
    def requests(self) -> int:
        return self.batches * self.batch

    @property
    def end_s(self) -> float:
        return self.begin_s + self.batches * (self.of_batch_s + self.idle_s) - self.idle_s

    def begins(self, batch: int) -> float:
        return self.begin_s + batch * (self.of_batch_s + self.idle_s)

    def phases(self) -> list[tuple[float, float, str]]:
        found = [(0.0, 1.0, "load"), (1.0, 2.0, "warmup"), (2.0, self.begin_s, "settle")]
        for number in range(self.batches):
            at = self.begins(number)
            decoding = (self.tokens_out - 1) * self.decode_s
            after = "serve" if self.at_once and number + 1 < self.batches else "idle"
            for seconds, name in ((self.host_s, "serve"), (self.prefill_s, "prefill"),
                                  (decoding, "decode"), (self.host_s, after),
                                  (self.idle_s, "idle")):  # fmt: skip
                if seconds:
                    found.append((at, at + seconds, name))
                    at += seconds
        if self.idle_s:
            found.pop()
        return found

    def power_w(self, _uuid: str, s: float) -> float:
        found = (name for t0, t1, name in self.phases() if t0 <= s < t1)
        return self.watts[next(found, "rest")]

    def joules(self, *names: str) -> float:
        return sum((t1 - t0) * self.watts[n] for t0, t1, n in self.phases() if n in names)


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
             throttle: Callable[[float], int] = lambda _s: 0,
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
                    row = (host.at(s), 1000, mj, power_w(uuid, s) * 1e3, 40, 90, 1400,
                           throttle(s), 0)  # fmt: skip
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

    def serving(self, run_id: str = "aaaa", course: Course = Course(), *, deployment: str = "dddd",
                cycle: int = 0, options: Mapping[str, Any] | None = None, nodes: int = 1,
                per_node: int = 1, **more: Any) -> str:  # fmt: skip
        """A planned run of a served model of 2 layers with 4 heads of 8."""
        model = {"name": "tiny", "params": 5000, "layers": 2, "heads": 4, "kv_heads": 2,
                 "head_size": 8, "flops_per_token_forward": 8000.0}  # fmt: skip
        planned = {
            "model": model,
            "prompts": {"kind": "synthetic", "count": course.requests,
                        "input_tokens": course.tokens_in, "output_tokens": course.tokens_out},
            "arrival": {"kind": "batch", "rate": None},
        }  # fmt: skip
        return self.run(
            run_id, nodes=nodes, per_node=per_node, workload="inference", deployment_id=deployment,
            seed=cycle, backend="transformers", effective={"batch_size": course.batch},
            options={"batch_size": course.batch, **(options or {})}, **{**planned, **more},
        )  # fmt: skip

    def served_rank(self, run_id: str = "aaaa", course: Course = Course(), number: int = 0, *,
                    rank: int = 0, world: int = 1, host: Host = Host(), requests: bool = True,
                    spans: bool = True, batches: int | None = None,
                    engine: Sequence[tuple[float, ...]] = (),
                    workload: str = "inference", **meta: Any) -> Path:  # fmt: skip
        """Requests arrive where their batch begins; the first `batches` are served. `engine` are
        steps of a server's engine: seconds, then the columns of /engine after its time."""
        path = self.attempt(run_id, number) / f"rank-{rank:05d}.h5"
        values = {"run_id": run_id, "attempt": number, "rank": rank, "world": world,
                  "host": host.name, "boot_id": host.boot_id, "workload": workload,
                  **meta}  # fmt: skip
        nan = math.nan
        forward = 0
        with rank_writer(path, meta=values) as writer:
            _own_clock(writer, host)

            def passes(batch: int, from_s: float, to_s: float, *, sequences: int, read: int,
                       made: int, context: int, phase: Phase) -> None:  # fmt: skip
                nonlocal forward
                row = (forward, batch, host.at(from_s), host.at(to_s), sequences, read, made,
                       context, nan, nan, int(phase), sequences, read)  # fmt: skip
                writer.append("forwards", row)
                forward += 1

            for k in range(2):
                passes(-1, 1 + k / 2, 1.5 + k / 2, sequences=1, read=8, made=1, context=9,
                       phase=Phase.WARMUP)  # fmt: skip
            for b in range(course.batches if batches is None else batches):
                at = course.begins(b)
                n, before = course.batch, course.tokens_in
                first = at + course.host_s + course.prefill_s
                passes(b, at + course.host_s, first, sequences=n, read=n * before, made=n,
                       context=n * (before + 1), phase=Phase.PREFILL)  # fmt: skip
                for k in range(1, course.tokens_out):
                    passes(b, first + (k - 1) * course.decode_s, first + k * course.decode_s,
                           sequences=n, read=n, made=n, context=n * (before + 1 + k),
                           phase=Phase.DECODE)  # fmt: skip
                last = first + (course.tokens_out - 1) * course.decode_s
                arrival = course.begin_s if course.at_once else at
                for k in range(n if requests else 0):
                    row = (b * n + k, b * n + k, b, before, course.tokens_out, host.at(arrival),
                           host.at(at), host.at(first), host.at(last), 0)  # fmt: skip
                    writer.append("requests", row)
            for t0, t1, phase in (
                (0.0, 1.0, Phase.LOAD), (1.0, 2.0, Phase.WARMUP),
                (2.0, course.begin_s, Phase.SETTLE), (course.begin_s, course.end_s, Phase.SERVE),
            ) if spans else ():  # fmt: skip
                writer.append("spans", (0, host.at(t0), host.at(t1), nan, nan, int(phase)))
            for step, (seconds, *told) in enumerate(engine):
                writer.append("engine", (step, host.at(seconds), *told))
        return path

    def served(self, run_id: str = "aaaa", course: Course = Course(), *,
               engine: Sequence[tuple[float, ...]] = (), **run: Any) -> str:  # fmt: skip
        """A run with one completed attempt on a device of its own."""
        self.serving(run_id, course, **run)
        self.served_rank(run_id, course, engine=engine)
        self.node(run_id, devices=[f"GPU-of-{run_id}"], power_w=course.power_w,
                  to_s=course.end_s + 1, idle_w=50.0)  # fmt: skip
        self.end(run_id, window_s=(0.0, course.end_s + 0.5), peak_memory_bytes=3e9,
                 peak_memory_window_bytes=2e9, load_s=1.0,
                 effective={"batch_size": course.batch, "precision": "fp32"})  # fmt: skip
        return run_id

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


@pytest.fixture(scope="session")
def course() -> type[Course]:
    return Course


@pytest.fixture(scope="session")
def plant() -> type[Planted]:
    """To plant a folder that several tests read."""
    return Planted


@pytest.fixture
def host() -> type[Host]:
    return Host


@pytest.fixture
def own_clock() -> Callable[[RecordWriter, Host], None]:
    return _own_clock
