"""One run of a deployment on one rank: load, warm up, serve what arrives, record, tell the end.

There are no checkpoints: an attempt that has to leave keeps what it recorded, and the next one
begins anew.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from llem.campaign import Serving
from llem.records import Phase, host_meta
from llem.serving.backend import Backend, backend_class
from llem.serving.log import Log
from llem.serving.outcome import Served, ServingProgress, Status, WarmedUp
from llem.serving.replica import Replica
from llem.serving.requests import Request, make_requests
from llem.serving.servers.memory import ServerMemory
from llem.training.clocks import tie_clock
from llem.training.memory import PeakMemory, largest
from llem.training.outcome import ShouldStop
from llem.training.pulse import Counter, NoCounter
from llem.training.recording import Recording
from llem.training.world import World, versions

NOT_WARMED_UP = WarmedUp(rounds=0, spread=math.nan, converged=False, duration_s=0.0)
# Beside what every rank's versions hold.
PACKAGES = ("transformers", "tokenizers", "bitsandbytes", "vllm", "tensorrt_llm")


# Who is told how serving goes, about once a second, on rank 0.
Told = Callable[[ServingProgress], None]


def serve_run(
    run: Serving,
    *,
    attempt_dir: str | Path,
    world: World,
    meta: Mapping[str, Any],
    told: Told | None = None,
    should_stop: ShouldStop | None = None,
    counter: Counter | None = None,
) -> Served:
    """Serve all requests of `run`; called by every rank of `world`.

    Writes `attempt_dir/rank-*.h5`, with `meta` among its attributes. `should_stop` is asked after
    each forward pass. `counter` is what passes are stamped with: the device's energy counter.

    Raises InputError where options, model or prompts cannot be had so, UnavailableError where a
    package is not here, and whatever ends the model itself (out of memory).
    """
    began_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    attempt = Path(attempt_dir)
    deployment = run.deployment
    replica = Replica(world, ranks=deployment.tensor_parallel * deployment.pipeline_parallel)
    counter = counter or NoCounter()
    # Refused here, before anything is read, where the options cannot be had.
    with closing(backend_class(run.deployment.backend)(run, replica)) as backend:
        world.first(lambda: attempt.mkdir(parents=True, exist_ok=True))
        # Where the model is in other processes, the backend knows which.
        memory = backend.memory() if hasattr(backend, "memory") else PeakMemory(world.device)
        path = attempt / f"rank-{world.rank:05d}.h5"
        own = {**_own_meta(run, world, replica), "device_uuid": world.device_uuid or counter.uuid}
        with closing(Recording(path, meta={**own, **meta}, rank=world.rank)) as record:
            record.event("stamps", counter.reason or f"the energy counter of {counter.uuid}")
            return _Server(
                run=run, world=world, replica=replica, backend=backend, memory=memory,
                counter=counter, record=record, told=told if world.main else None,
                should_stop=should_stop,
            ).run_to_end(began_ns=began_ns, wall_ns=wall_ns)  # fmt: skip


def _own_meta(run: Serving, world: World, replica: Replica) -> dict[str, Any]:
    found = dict(versions())
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        **host_meta(),
        "run_id": run.run_id,
        "workload": run.workload,
        "deployment_id": run.deployment.deployment_id,
        "cycle": run.cycle,
        "rank": world.rank,
        "local_rank": world.local_rank,
        "world_size": world.world_size,
        "replica": replica.index,
        "replicas": replica.count,
        "device": torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "versions": found,
        "image_digest": os.environ.get("LLEM_IMAGE_DIGEST", ""),
        "requests_planned": run.deployment.prompts.count,
    }


@dataclass(kw_only=True)
class _Server:
    """The state of one attempt."""

    run: Serving
    world: World
    replica: Replica
    backend: Backend
    memory: PeakMemory | ServerMemory
    counter: Counter
    record: Recording
    told: Told | None
    should_stop: ShouldStop | None

    def run_to_end(self, *, began_ns: int, wall_ns: int) -> Served:
        tie_clock(self.record, self.world)
        # Of all ranks, or of none: a file on a parallel file system may be there for one alone.
        requests = make_requests(self.run, self.backend.tokenizer)
        mine = self.replica.share(requests)
        # Of rank 0 for all, which load together.
        stopped = self.world.first(self.should_stop) if self.should_stop is not None else None
        load_s, effective, warmed = 0.0, {}, NOT_WARMED_UP
        if stopped is None:
            load_s, stopped = self._load()
        if stopped is None:
            effective = self.backend.effective()
            warmed, stopped = self._warm_up(mine)
        loaded = self.memory.read()
        self.memory.begin_window()
        self.world.barrier()
        log = self._log(requests=len(mine))
        log.stop_reason = stopped
        wall0_ns = time.time_ns()
        with self._span(Phase.SERVE, log=log):
            if stopped is None:
                self.backend.serve(mine, log)
            else:
                log.left(mine)
        wall1_ns = wall0_ns + time.monotonic_ns() - log.t0_ns
        window = self.memory.read()
        self.record.event("memory", f"loading and warm-up: {loaded.told()}; {window.told()}")
        window_bytes, reason = largest(window, self.world)
        loaded_bytes, _ = largest(loaded, self.world)
        parts = self._gather(log, wall0_ns=wall0_ns, wall1_ns=wall1_ns)
        reasons = [part["stop"] for part in parts if part["stop"]]
        status: Status = "interrupted" if reasons else "completed"
        self.record.event(status, reasons[0] if reasons else "")
        tie_clock(self.record, self.world)
        self.record.stamp_clock()
        self.record.flush()
        # Also a barrier: every rank has its result on disk when rank 0 tells the run's end.
        problems = self.world.gather_text(self.record.problem or None)
        leads = [part for part in parts if part["lead"]]
        served, tokens = (sum(part[k] for part in leads) for k in ("finished", "tokens_out"))
        took_s = (max(p["wall1_ns"] for p in parts) - min(p["wall0_ns"] for p in parts)) / 1e9
        return Served(
            status=status,
            reason=reasons[0] if reasons else "",
            step=served,
            steps=len(requests),
            failed=sum(part["failed"] for part in leads),
            tokens_in=sum(part["tokens_in"] for part in leads),
            tokens_out=tokens,
            tokens_per_s=tokens / took_s if took_s > 0 else math.nan,
            requests_per_s=served / took_s if took_s > 0 else math.nan,
            asked=dict(self.run.deployment.options),
            effective=effective,
            replicas=self.replica.count,
            load_s=load_s,
            warmup=warmed,
            peak_memory_bytes=max(loaded_bytes, window_bytes),
            peak_memory_window_bytes=window_bytes,
            peak_memory_reason=reason,
            window_t0_ns=log.t0_ns,
            window_t1_ns=log.t_end_ns,
            t0_ns=began_ns,
            t1_ns=time.monotonic_ns(),
            wall0_ns=wall_ns,
            wall1_ns=time.time_ns(),
            record="; ".join(f"rank {i}: {text}" for i, text in enumerate(problems) if text),
        )

    def _load(self) -> tuple[float, str | None]:
        """How long it took, and why to leave, None where not."""
        t0_ns = time.monotonic_ns()
        if self.should_stop is not None and hasattr(self.backend, "leave"):
            self.backend.leave = self._leaves
        with self._span(Phase.LOAD):
            self.backend.load()
            self.world.barrier()
        stopped = self.world.first(self.should_stop) if self.should_stop is not None else None
        return (time.monotonic_ns() - t0_ns) / 1e9, stopped

    def _leaves(self) -> bool:
        return self.should_stop is not None and self.should_stop() is not None

    def _warm_up(self, requests: Sequence[Request]) -> tuple[WarmedUp, str | None]:
        """Serve the same batch until it takes equally long; and why to leave, None where not."""
        wanted = self.run.warmup
        batch = [
            Request(number=r.number, prompt=r.prompt, tokens=r.tokens,
                    output_tokens=r.output_tokens)
            for r in self.backend.warmup_requests(requests)
        ]  # fmt: skip
        took: deque[float] = deque(maxlen=max(2, wanted.window))
        rounds, spread, converged, batches = 0, math.nan, False, 0
        began_ns, stopped = time.monotonic_ns(), None
        with self._span(Phase.WARMUP):
            while batch and rounds < wanted.most:
                log = self._log(warmup=True, first_batch=batches)
                t0_ns = time.monotonic_ns()
                try:
                    self.backend.serve(batch, log)
                finally:
                    log.hand_over()
                batches, rounds = log.batches, rounds + 1
                took.append((time.monotonic_ns() - t0_ns) / 1e9)
                spread = _spread(took, wanted.window)
                since_s = (time.monotonic_ns() - began_ns) / 1e9
                stopped = log.stop_reason
                enough = rounds >= wanted.least and spread < wanted.spread
                over = bool(enough and since_s >= wanted.floor_s)
                # What ranks of one replica measure differs: one of them decides.
                converged, left = self.replica.first(
                    lambda over=over, stopped=stopped: (over, stopped)  # type: ignore[misc]
                )
                if converged or left is not None:
                    break
        took_s = (time.monotonic_ns() - began_ns) / 1e9
        how = "converged" if converged else "not converged"
        text = f"{how} after {rounds} rounds in {took_s:.3g} s, spread {spread:.3g}"
        self.record.event("warmup", text if wanted.most else "none was asked for")
        told = WarmedUp(rounds=rounds, spread=spread, converged=converged, duration_s=took_s)
        return told, stopped

    def _log(self, *, requests: int = 0, warmup: bool = False, first_batch: int = 0) -> Log:
        return Log(
            self.record,
            counter=self.counter,
            should_stop=self.should_stop,
            told=None if warmup else self.told,
            requests=requests,
            warmup=warmup,
            first_batch=first_batch,
            lead=self.replica.lead,
        )

    def _gather(self, log: Log, *, wall0_ns: int, wall1_ns: int) -> list[dict[str, Any]]:
        """What each rank has done, by rank, on every rank."""
        mine = {
            "lead": self.replica.lead,
            "stop": log.stop_reason,
            "finished": log.finished,
            "failed": log.failed,
            "tokens_in": log.tokens_in,
            "tokens_out": log.tokens_out,
            "wall0_ns": wall0_ns,
            "wall1_ns": wall1_ns,
        }
        return [json.loads(text or "{}") for text in self.world.gather_text(json.dumps(mine))]

    @contextmanager
    def _span(self, phase: Phase, *, log: Log | None = None) -> Iterator[None]:
        """Record a time and its energy, also where it fails; of the window: from `log`'s zero."""
        t0_ns, e0_mj = log.zero if log is not None else (time.monotonic_ns(), self.counter.read())
        try:
            yield
        finally:
            t1_ns, e1_mj = time.monotonic_ns(), self.counter.read()
            if log is not None:
                log.t_end_ns = t1_ns
                log.hand_over()
            done = log.finished if log is not None else 0
            self.record.append("spans", (done, t0_ns, t1_ns, e0_mj, e1_mj, int(phase)))


def _spread(took: Sequence[float], window: int) -> float:
    """Standard deviation over mean of the last `window` durations; NaN while they are fewer."""
    last = list(took)[-window:]
    if len(last) < max(2, window):
        return math.nan
    return statistics.stdev(last) / statistics.fmean(last)
