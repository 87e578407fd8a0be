"""The test cluster as a campaign names it: its site, in YAML."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FARM = {
    "name": "farm",
    "executor": "slurm",
    "partition": "gpu",
    "nodes": 4,
    "gpus_per_node": 2,
    "gpu": {"name": "cpu"},
    "gpu_request": "gres",
}
NVML = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"


def farm_profile(
    image: Path | None = None,
    nvml: Path | None = None,
    *,
    images: Mapping[str, str] | None = None,
    binds: Sequence[str] = (),
    **keys: Any,
) -> str:
    """The farm's profile, a key a line; `keys` are added or take the place of its own.

    With an image elements run in it, and those of backends in `images` in theirs; with `nvml`, a
    stand-in library, they meter two GPUs of 250 W, unless `environment` says otherwise.
    """
    site = FARM | keys
    if image is not None or images is not None:
        bound = [*([f"{nvml}:{NVML}:ro"] if nvml else []), *binds]
        named = {"image": str(image)} if image else {}
        named |= {"images": dict(images)} if images else {}
        site["container"] = {**named, "gpu": "none", "binds": bound}
    if nvml is not None:
        asked = keys.get("environment", {})
        site["environment"] = {"FAKE_NVML_GPUS": "2", "FAKE_NVML_BASE_W": "250", **asked}
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in site.items())


def farm_site(*files: Path | None, **keys: Any) -> str:
    """The same as the `site` of a campaign file, where it may be the last key."""
    return "site:\n" + "".join(f"  {line}\n" for line in farm_profile(*files, **keys).splitlines())
