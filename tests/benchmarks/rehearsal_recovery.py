"""Does the whole path find again what a rehearsal planted? Campaigns of 60 runs, with failures.

Each repeat plays a plan of 60 runs (600 GPU-hours on A100 nodes) with another seed, stragglers and
failures on, writes every record, aggregates the folder and fits the law with the ordinary
functions, and compares with what was planted: the exponents with their 95 % intervals, and each
run's joules with the simulator's truth.

    python tests/benchmarks/rehearsal_recovery.py --repeats 100 --out /tmp/recovery.jsonl

goes on where the file ends (which the same simulator must have written); about 3 s of one core for
each repeat, 50 MB of disk at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llem.pipeline import aggregate_campaign, fit_campaign, plan_campaign, rehearse
from llem.planning import Plan
from llem.rehearsal import World, planted

LAWS = {
    "chinchilla": "chinchilla",
    "hoffmann": "hoffmann",
    "steep": "E=1.9,A=250,B=8000,alpha=0.30,beta=0.42",
}
# Samples of power this far apart keep records small. A killed node loses up to one of them.
INTERVAL_S = 10.0
EXPONENTS = ("alpha", "beta")


def plan_of(place: Path) -> Plan:
    """60 runs of 15 M to 1.2 G parameters."""
    from llem.campaign.load import campaign_from

    data = place / "tokens.bin"
    with open(data, "wb") as file:
        file.truncate(100 << 30)  # a hole: rehearsals read no token
    campaign = campaign_from(
        {
            "name": "recovery", "target": "1e22 FLOP", "budget": "600 GPUh",
            "model": {"family": "llama", "vocabulary": 32000, "context": 2048},
            "data": {"path": str(data), "dtype": "uint16", "evaluation_tokens": "4M"},
            "seeds": 2, "grid": {"runs": 60}, "site": "juwels-booster",
            "training": {"batch_tokens": 4194304, "checkpoint_every": 100},
        },
        source="the benchmark",
    )  # fmt: skip
    return plan_campaign(campaign, out=place / "plan", base=place, write=False).plan


def one(plan: Plan, law: str, seed: int, place: Path) -> dict[str, Any]:
    """What one rehearsed campaign gave."""
    # No two repeats share their luck, whatever their law.
    world = World(plan=plan, planted=planted(LAWS[law]), seed=len(LAWS) * seed + [*LAWS].index(law))
    played = rehearse(world, out=place, replace_old=True, interval_s=INTERVAL_S)
    found = aggregate_campaign(played.folder)
    fit = fit_campaign(played.folder, allow_edge_minima=True)
    held, told = {}, {}
    for name in EXPONENTS:
        low, high = fit["ci"]["params"][name]
        held[name] = bool(low <= world.planted.params[name] <= high)
        told[name] = fit["params"][name]
    # A device that falls silent leaves its run without energy: such runs are counted, not summed.
    known = [row for row in found.observations if math.isfinite(row.energy_j)]
    seen = sum(row.energy_j for row in known)
    true = sum(played.truth[row.run_id]["energy_j"] for row in known)
    off = [row.energy_j / played.truth[row.run_id]["energy_j"] - 1 for row in known]
    statuses: dict[str, int] = defaultdict(int)
    for attempt in played.attempts:
        statuses[attempt.status] += 1
    return {
        "law": law, "seed": seed, "held": held, "fitted": told, "attempts": dict(statuses),
        "joules_worst": max(map(abs, off)), "joules_total": seen / true - 1,
        "unmeasured": len(found.observations) - len(off),
        "bridged": sum("counter reset" in row.energy_reason for row in known),
        "problems": len(found.problems),
    }  # fmt: skip


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from map(json.loads, path.read_text().splitlines())


def table(rows: list[dict[str, Any]]) -> None:
    total: dict[str, list[bool]] = defaultdict(list)
    print(f"{'law':12}{'repeats':>8}" + "".join(f"{n + ' held':>14}" for n in EXPONENTS))
    for law in LAWS:
        of_law = [row for row in rows if row["law"] == law]
        if not of_law:
            continue
        shares = []
        for name in EXPONENTS:
            held = [row["held"][name] for row in of_law]
            total[name] += held
            shares.append(f"{sum(held) / len(held):14.1%}")
        print(f"{law:12}{len(of_law):8}" + "".join(shares))
    shares = [f"{sum(total[n]) / len(total[n]):14.1%}" for n in EXPONENTS]
    print(f"{'all':12}{len(rows):8}" + "".join(shares))
    attempts: dict[str, int] = defaultdict(int)
    for row in rows:
        for status, count in row["attempts"].items():
            attempts[status] += count
    print("attempts:", ", ".join(f"{n} {s}" for s, n in sorted(attempts.items())))
    print(
        f"joules: worst run {max(r['joules_worst'] for r in rows):.3%}, worst campaign "
        f"{max(abs(r['joules_total']) for r in rows):.4%}; "
        f"{sum(r['unmeasured'] for r in rows)} runs without energy, "
        f"{sum(r['bridged'] for r in rows)} with a counter that began anew"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=100, help="of each law")
    parser.add_argument("--out", type=Path, default=Path("recovery.jsonl"))
    args = parser.parse_args()
    rows = list(rows_of(args.out))
    done = {(row["law"], row["seed"]) for row in rows}
    with tempfile.TemporaryDirectory(prefix="llem-recovery-") as folder:
        place = Path(folder)
        plan = plan_of(place)
        for seed in range(args.repeats):
            for law in LAWS:
                if (law, seed) in done:
                    continue
                rows.append(one(plan, law, seed, place / "campaign"))
                with open(args.out, "a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        shutil.rmtree(place / "campaign", ignore_errors=True)
    table(rows)


if __name__ == "__main__":
    main()
