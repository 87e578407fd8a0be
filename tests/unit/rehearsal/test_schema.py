"""Rehearsed files have the schema of real ones: a real campaign is run here, and compared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

import llem
from llem.cluster import CampaignFolder
from llem.pipeline import rehearse
from llem.rehearsal import Failures, World, planted

pytest.importorskip("torch")

# What only a rehearsed record says, and what a record of another meter says of its driver.
OWN = {"rehearsal"}
CAMPAIGN = """
name: schema
target: 1e11 FLOP
model: {family: llama, vocabulary: 256, context: 32}
data: {builtin: python-sources, evaluation_tokens: 8192}
grid: {levels: 2, sizes: 3}
training: {precision: fp32, rule: small}
site: laptop
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("schema")
    (place / "campaign.yaml").write_text(CAMPAIGN)
    real = place / "real"
    environ = {**os.environ, "PYTHONPATH": str(Path(llem.__file__).parents[1])}
    for command in (["plan", "campaign.yaml", "--budget", "5e9 FLOP"], ["submit"]):
        where = ["--out", str(real)] if command[0] == "plan" else [str(real)]
        done = subprocess.run(
            [sys.executable, "-m", "llem", *command, *where], cwd=place, env=environ,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    plan = CampaignFolder(real).load_plan()
    world = World(plan=plan, planted=planted("chinchilla"), failures=Failures.none())
    return real, rehearse(world, out=place / "rehearsed").folder.root


def first(folder, name):
    return sorted(folder.glob(f"runs/*/attempt-0/{name}"))[0]


def layout(path):
    """Every data set's type and growth, and the names and kinds of every attribute."""
    found = {}

    def visit(name, item):
        place = "/".join("UUID" if "-" in part else part for part in name.split("/"))
        if isinstance(item, h5py.Dataset):
            found[place] = (item.dtype, item.maxshape, item.chunks, item.compression)
        kinds = {k: "text" if v.dtype.kind in "SO" else v.dtype.str for k, v in _attrs(item)}
        found[f"{place} attributes"] = kinds

    with h5py.File(path, "r") as file:
        file.visititems(visit)
    return found


def _attrs(item):
    return [(k, item.attrs.get_id(k)) for k in item.attrs]


@pytest.mark.slow
def test_a_rank_s_record_is_the_same_but_for_its_mark(folders):
    real, rehearsed = (layout(first(folder, "rank-*.h5")) for folder in folders)
    assert set(rehearsed["meta attributes"]) - set(real["meta attributes"]) == OWN
    for name in OWN:
        del rehearsed["meta attributes"][name]
    assert rehearsed == real


@pytest.mark.slow
def test_a_node_s_record_is_the_same_but_for_its_mark(folders):
    real, rehearsed = (layout(first(folder, "node-*.h5")) for folder in folders)
    assert set(rehearsed["meta attributes"]) - set(real["meta attributes"]) == OWN
    for name in OWN:
        del rehearsed["meta attributes"][name]
    assert rehearsed == real


@pytest.mark.slow
@pytest.mark.parametrize("name", ["begin.json", "end.json"])
def test_what_tells_of_an_attempt_has_the_same_keys(folders, name):
    real, rehearsed = (json.loads(first(folder, name).read_text()) for folder in folders)
    assert set(rehearsed) - set(real) <= OWN
    assert set(real) <= set(rehearsed)


@pytest.mark.slow
def test_both_are_reduced_to_rows_with_the_same_cells_filled(folders):
    from llem.pipeline import aggregate_campaign

    real, rehearsed = (aggregate_campaign(CampaignFolder(f), write=False) for f in folders)
    assert rehearsed.problems == real.problems == ()
    for one, other in zip(real.observations, rehearsed.observations, strict=True):
        assert (one.run_id, one.status, one.tokens) == (other.run_id, other.status, other.tokens)
        assert one.coverage == pytest.approx(other.coverage, abs=0.02)
