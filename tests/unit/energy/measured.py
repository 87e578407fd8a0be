"""A rank that measures itself: `measured.py RECORD SECONDS [STAGGER]` prints one JSON line."""

import json
import os
import sys
import time

import llem


def main(record, seconds, stagger=0.0):
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    time.sleep(rank * stagger)
    entered = time.time()
    with llem.measure(record, interval_s=0.05) as m:
        began = time.time()
        with m.phase("first half"):
            time.sleep(seconds / 2)
        time.sleep(seconds / 2)
        ended = time.time()
    left = time.time()
    told = {"rank": rank, "entered": entered, "began": began, "ended": ended, "left": left,
            "last": m.last, "path": str(m.path), "lost": m.lost,
            "reasons": m.reasons}  # fmt: skip
    if not m.lost:
        told |= {"energy_j": m.energy_j, "duration_s": m.duration_s, "devices": len(m.devices)}
    # In one write: ranks may share a pipe, and `print` may write a line's end by itself.
    sys.stdout.write(f"{json.dumps(told)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:]))
