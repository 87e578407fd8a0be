"""Five shapes of site, and a campaign on each."""

from llem.campaign import TokenData, campaign_from

DATA = TokenData(path="x", dtype="uint8", tokens=10**15, evaluation_tokens=65536, fingerprint="ab")
PRICES = {"currency": "EUR", "per_gpu_hour": 1.5, "per_kwh": 0.2}
SITES = {
    "laptop": {"executor": "local", "gpu": {"name": "cpu"}, "gpu_request": "none",
               "startup_s": 4, "pack_s": 40, "concurrency": 2},
    "one-node": {"nodes": 1, "gpus_per_node": 8, "gpu": {"name": "H100"}},
    "small-cluster": {"nodes": 16, "gpus_per_node": 4, "gpu": {"name": "A100-40GB"},
                      "limits": {"time": "24h"}, "pue": 1.2},
    "large-cluster": {"nodes": 512, "gpus_per_node": 8, "gpu": {"name": "H100"}, "pue": 1.1,
                      "limits": {"time": "6h", "array_size": 1001}},
    "amd": {"nodes": 64, "gpus_per_node": 8, "gpu": {"name": "MI250X"}, "limits": {"time": "12h"}},
}  # fmt: skip
MODELS = {
    "bytes": ({"vocabulary": 256, "context": 128}, "small"),
    "words": ({"vocabulary": 32000, "context": 2048}, "steplaw"),
}


def campaign_at(site, model="words", /, **changes):
    shape, rule = MODELS[model]
    values = {
        "name": "c",
        "target": "1e26",
        "model": shape,
        "training": {"rule": rule},
        "site": {"name": site, "prices": PRICES, **SITES[site]},
        **changes,
    }
    return campaign_from(values)
