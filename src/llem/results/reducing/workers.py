"""Reducing many runs at once, in processes of their own.

A worker is a Python that runs `main` here: it is told the campaign on its first line of input, then
a run a line, and answers each with a line. No process is forked, and no script of a user's
is imported again, so that a library call needs no `if __name__ == "__main__"`. A worker ends
when its input does, and so with the process that started it.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from llem._resources import PACKAGE
from llem.errors import LlemError
from llem.results.carbon import CarbonSeries
from llem.results.reducing.encoding import encode
from llem.results.reducing.reduction import reduce_run

# A login node is shared: more than this only where it is asked for.
MOST_WORKERS = 8
# Less than this for each further process is done before it has started.
WORTH_BYTES = 200_000_000

# How long no answer may come before whoever asked is told that there is time.
IDLE_S = 1.0
# A worker has the next run at hand when it has done one: on a busy machine, waiting for the process
# that started it takes longer than a short run does.
AHEAD = 2
# One thread each; and glibc keeps the memory that is freed, since giving it back and asking for it
# again takes a quarter of the time.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
    "MALLOC_TOP_PAD_": str(16 << 20),
}

Run = Mapping[str, Any]


def workers_for(total_bytes: int) -> int:
    """How many processes to reduce so many bytes with, by the processors that this one may use."""
    return max(1, min(len(os.sched_getaffinity(0)), MOST_WORKERS, total_bytes // WORTH_BYTES))


def reduce_runs(
    folder: Path,
    runs: Sequence[Run],
    *,
    carbon: CarbonSeries | None,
    workers: int | None,
    total_bytes: int,
    idle: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, str]]:
    """Reduce runs of `total_bytes` of files; (place in `runs`, encoded reduction) as they are
    done, in any order. What is little is reduced here, unless several workers were asked for.
    `idle` is called whenever workers have had no answer for IDLE_S.

    Raises LlemError where a worker was killed.
    """
    wanted = workers_for(total_bytes) if workers is None else workers
    workers = min(wanted, len(runs))
    if workers <= 1 and total_bytes < WORTH_BYTES:
        for index, run in enumerate(runs):
            yield index, reduce_to_text(folder, run, carbon)
        return
    workers = max(workers, 1)
    answers: SimpleQueue[tuple[int, str | LlemError]] = SimpleQueue()
    tasks = iter(enumerate(runs))
    lock = threading.Lock()
    head = json.dumps({"folder": str(folder), "carbon": carbon_told(carbon)})
    processes = [_start() for _ in range(workers)]

    def feed(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None and process.stdout is not None
        told: deque[tuple[int, Run]] = deque()
        try:
            process.stdin.write(head + "\n")
            while True:
                while len(told) < AHEAD:
                    with lock:
                        found = next(tasks, None)
                    if found is None:
                        break
                    told.append(found)
                    process.stdin.write(json.dumps(found[1]) + "\n")
                if not told:
                    return
                process.stdin.flush()
                line = process.stdout.readline()
                if not line.endswith("\n"):
                    raise OSError
                answers.put((told.popleft()[0], line[:-1]))
        except OSError:
            code = process.wait()
            how = f"signal {-code}" if code < 0 else f"status {code}"
            of = f" while it reduced run {told[0][1]['run_id']}" if told else ""
            answers.put((-1, LlemError(
                f"a worker process ended{of} ({how})",
                remedy="aggregate with fewer workers: --workers 1",
            )))  # fmt: skip

    threads = [threading.Thread(target=feed, args=(p,), daemon=True) for p in processes]
    try:
        for thread in threads:
            thread.start()
        for _ in runs:
            while True:
                try:
                    index, answer = answers.get(timeout=IDLE_S)
                    break
                except Empty:
                    idle()
            if isinstance(answer, LlemError):
                raise answer
            yield index, answer
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for thread in threads:
            thread.join()


def reduce_to_text(folder: Path, run: Run, carbon: CarbonSeries | None) -> str:
    """One run's reduction as text."""
    found = reduce_run(folder, run, carbon=carbon)
    return encode(found, place=folder / "runs" / found.run_id)


def _start() -> subprocess.Popen[str]:
    source = str(PACKAGE.parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from llem.results.reducing.workers import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
    )


def carbon_told(carbon: CarbonSeries | None) -> dict[str, Any] | None:
    """A series as JSON has it."""
    if carbon is None:
        return None
    return {
        "source": carbon.source,
        "at_ns": carbon.at_ns.tolist(),
        "g_per_kwh": carbon.g_per_kwh.tolist(),
    }


def carbon_heard(told: dict[str, Any] | None) -> CarbonSeries | None:
    """The inverse of `carbon_told`, to the bit."""
    if told is None:
        return None
    import numpy as np

    return CarbonSeries(
        source=told["source"],
        at_ns=np.array(told["at_ns"], dtype=np.int64),
        g_per_kwh=np.array(told["g_per_kwh"], dtype=float),
    )


def main() -> None:
    """A worker: reads its campaign, then runs, until its input ends."""
    # Ctrl-C is for the process that started it, which ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    head = json.loads(sys.stdin.readline())
    folder, carbon = Path(head["folder"]), carbon_heard(head["carbon"])
    # what is there now stays: it need not be looked through again and again
    gc.freeze()
    for line in sys.stdin:
        print(reduce_to_text(folder, json.loads(line), carbon), flush=True)
