"""A synthetic campaign with everything that can happen to a run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from llem.scaling import CHINCHILLA, FlopsModel, Target, fit_law

TRUTH = {"E": 1.82, "A": 480.0, "B": 2100.0, "alpha": 0.348, "beta": 0.366}
HOSTILE = "loss rose <script>alert('x')</script> & \"more\""


def observations() -> list[dict[str, Any]]:
    """24 runs at four compute levels; three of them did not complete."""
    rng = np.random.default_rng(1)
    flops = np.repeat(np.geomspace(3e15, 3e17, 4), 6)
    log_n, _ = CHINCHILLA.optimum(CHINCHILLA.natural(TRUTH), flops, FlopsModel())
    params = np.exp(log_n) * np.tile(np.geomspace(0.3, 3, 6), 4)
    tokens = flops / 6 / params
    loss = CHINCHILLA.predict(TRUTH, params, tokens) * np.exp(0.005 * rng.standard_normal(24))
    rows: list[dict[str, Any]] = [
        {
            "run_id": f"run-{i:02d}",
            "attempt": 1,
            "status": "completed",
            "reason": "",
            "seed": 0,
            "params": int(params[i]),
            "tokens": int(tokens[i]),
            "flops": float(flops[i]),
            "loss": float(loss[i]),
            "loss_se": 0.004,
            "energy_j": 2000 + 3e-11 * float(flops[i]),
            "energy_quality": "counter" if i % 7 else "integral",
            "duration_s": float(flops[i]) / 8e13,
            "gpu_seconds": float(flops[i]) / 2e13,
            "mfu": 0.31,
            "coverage": 1.0,
        }
        for i in range(24)
    ]
    rows[3] |= {"status": "diverged", "reason": "loss is NaN at step 412", "loss": float("nan")}
    rows[11] |= {"status": "diverged", "reason": HOSTILE, "loss": 9.7}
    rows[17] |= {"status": "unfinished", "reason": "1 of 4 ranks missing", "loss": None}
    rows[20] |= {"energy_j": None, "energy_quality": "none", "energy_reason": "no counter"}
    return rows


def fit_json(rows: list[dict[str, Any]], *, bootstrap: int = 100) -> dict[str, Any]:
    """fit.json of the completed runs, as it reads back from disk."""
    used = [r for r in rows if r["status"] == "completed"]

    def column(name: str) -> list[float]:
        return [float("nan") if r[name] is None else float(r[name]) for r in used]

    fit = fit_law(
        column("params"),
        column("tokens"),
        column("loss"),
        flops=column("flops"),
        energy_j=column("energy_j"),
        gpu_seconds=column("gpu_seconds"),
        run_id=[r["run_id"] for r in used],
        targets=[1e18, 1e24, Target(5, "kWh")],
        bootstrap=bootstrap,
        excluded=[
            {"run_id": r["run_id"], "reason": r["status"]}
            for r in rows
            if r["status"] != "completed"
        ],
    )
    out: dict[str, Any] = json.loads(json.dumps(fit.to_dict(), allow_nan=False))
    return out


PLAN: dict[str, Any] = {
    "schema": "llem-plan-1",
    "campaign": {"name": "llama-de"},
    "budget": {"value": 500, "unit": "GPUh"},
    "totals": {"runs": 24, "gpu_hours": 412.0, "energy_j": 6e8},
}
