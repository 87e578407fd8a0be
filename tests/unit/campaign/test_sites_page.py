"""docs/sites.md names every key that a site takes, and no other."""

import re
from pathlib import Path

from pydantic import BaseModel

from llem.campaign.site import Container, Gpu, Limits, Notify, Prices, Site

PAGE = Path(__file__).parents[3] / "docs" / "sites.md"
PARTS = {"limits": Limits, "container": Container, "prices": Prices, "notify": Notify}


def keys_of(model: type[BaseModel], prefix: str = "") -> set[str]:
    return {f"{prefix}{name}" for name in model.model_fields}


def test_every_key_of_a_site_has_a_row_and_every_row_is_a_key():
    rows = [line.split("|")[1] for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    told = {key for row in rows for key in re.findall(r"`([a-z_.]+)`", row)}
    wanted = keys_of(Site) - set(PARTS)
    wanted |= {key for name, part in PARTS.items() for key in keys_of(part, f"{name}.")}
    assert told - {"container"} == wanted


def test_the_keys_of_a_gpu_are_told():
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith("| `gpu` |")]
    assert keys_of(Gpu) <= set(re.findall(r"[a-z_]+", row))
