"""Plans as the planner makes them, and small ones made by hand for the timeline."""

from functools import lru_cache

from llem.campaign import TokenData, campaign_from
from llem.pipeline.campaigns import by_cell
from llem.planning import OwnModel, make_plan

DATA = TokenData(path="x", dtype="uint8", tokens=10**12, evaluation_tokens=65536, fingerprint="ab")
WORDS = {"vocabulary": 32000, "context": 2048}
CAMPAIGNS = {
    "laptop": {
        "name": "laptop", "target": "5e12 FLOP", "budget": "4e12 FLOP", "site": "laptop",
        "grid": {"levels": 3, "ratio": 2.5, "sizes": 5, "span": 0.45},
        "training": {"precision": "fp32", "rule": "small"},
    },
    "chained": {
        "name": "chained", "target": "1e25 FLOP", "budget": "3000 GPUh", "seeds": 2,
        "model": WORDS,
        "site": {"name": "two", "nodes": 2, "gpus_per_node": 4, "gpu": {"name": "A100-40GB"},
                 "limits": {"time": "6h"}},
    },
    "own": {
        "name": "own", "target": "1e12 FLOP", "budget": "4e11 FLOP", "site": "laptop",
        "model": {"class": "mlp:MLP", "size": "width", "values": [8, 16, 32, 64],
                  "vocabulary": 256, "context": 64},
        "grid": {"levels": 3, "sizes": 4, "ratio": 3},
        "training": {"precision": "fp32", "rule": "small"},
    },
    "large": {
        "name": "large", "target": "1e24 FLOP", "budget": "1e6 GPUh", "model": WORDS,
        "site": "juwels-booster", "grid": {"runs": 10000},
    },
}  # fmt: skip


@lru_cache
def plan_of(name):
    campaign = campaign_from(CAMPAIGNS[name])
    own = OwnModel(lambda width: 2 * 256 * width + 64 * width * width) if name == "own" else None
    return make_plan(campaign, data=DATA, own=own)


def page_of(name):
    """The plan as the page takes it, by cell."""
    return by_cell(plan_of(name))


def small(arrays, *, executor="slurm", nodes=2, devices=4, concurrency=2, startup_s=0.0):
    """A plan of arrays given as dictionaries whose `elements` are seconds, one run each."""
    runs, made = [], []
    for array in arrays:
        names = []
        for seconds in array["elements"]:
            names.append([f"r{len(runs)}"])
            runs.append({"run_id": names[-1][0], "level": 0, "params": len(runs) + 1, "tokens": 1,
                         "model": {}, "predicted": {"duration_s": seconds}})  # fmt: skip
        made.append({"name": f"a{len(made)}", "nodes": 1, "gpus_per_node": devices,
                     "time_limit_s": 3600, "throttle": None, "segments": 1, **array,
                     "elements": names})  # fmt: skip
    site = {"executor": executor, "nodes": nodes, "gpus_per_node": devices,
            "concurrency": concurrency, "startup_s": startup_s}  # fmt: skip
    return {"site": site, "arrays": made, "runs": runs}
