"""The energy of a program of your own, by phase: `python examples/measure.py run.h5`.

Under `srun`, `torchrun` or `mpirun` it is the same program: one process of each node samples for
all of its ranks. A program that you do not want to change: `llem measure --out run.h5 -- COMMAND`.
"""

import math
import sys
import time

import llem


def work(seconds: float) -> float:
    """Stands for your own code."""
    total, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end:
        total += sum(math.sqrt(i) for i in range(10_000))
    return total


def main(record: str = "run.h5") -> None:
    with llem.measure(record) as m:
        with m.phase("load data"):
            time.sleep(1.0)
        for _ in range(2):
            with m.phase("training"):
                work(2.0)
            with m.phase("evaluation"):
                work(0.5)
    if m.last:  # of several ranks on a node, the last one to end has seen the whole
        print(f"{m.energy_j:.0f} J in {m.duration_s:.1f} s ({m.result.quality}): {m.path}")
        for phase in m.phases:
            print(f"  {phase.phase:<12}{phase.energy_j:8.1f} J {phase.duration_s:6.2f} s")
        print(f"next: llem energy {record} --plot power.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
