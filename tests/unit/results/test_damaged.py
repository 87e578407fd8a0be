"""Two hundred damaged files in a campaign: each is named with its cause, the rest is right."""

from __future__ import annotations

import math
import os
import random
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from llem.records import seal
from llem.results import aggregate

DAMAGED, INTACT = 200, 12


def truncate(path: Path, chance: random.Random) -> None:
    os.truncate(path, chance.randrange(1, path.stat().st_size - 64))


def empty(path: Path, chance: random.Random) -> None:
    path.write_bytes(b"")


def other_program(path: Path, chance: random.Random) -> None:
    path.write_bytes(bytes(chance.randrange(256) for _ in range(5000)))


def flip(path: Path, at: int, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def flipped_head(path: Path, chance: random.Random) -> None:
    """In the superblock behind its marks of an open file, of which the reader makes nothing."""
    flip(path, chance.choice([*range(9), *range(12, 28), *range(36, 48)]), chance)


def flipped_block(path: Path, chance: random.Random) -> None:
    """In the header of what holds the record's name and schema."""
    with h5py.File(path) as file:
        at = h5py.h5o.get_info(file["meta"].id).addr
    flip(path, at + chance.randrange(4, 40), chance)


def flipped_data(path: Path, chance: random.Random) -> None:
    """In the rows of a sealed record; an open one has no checksum of its rows."""
    seal(path)
    with h5py.File(path) as file:
        table = (
            file["steps"] if "steps" in file else next(iter(file["devices"].values()))["samples"]
        )
        info = table.id.get_chunk_info(chance.randrange(table.id.get_num_chunks()))
    flip(path, info.byte_offset + chance.randrange(8, info.size - 8), chance)


def attribute(name: str, value: str):
    def change(path: Path, chance: random.Random) -> None:
        with h5py.File(path, "r+") as file:
            file["meta"].attrs[name] = value

    return change


def no_record(path: Path, chance: random.Random) -> None:
    path.unlink()
    with h5py.File(path, "w") as file:
        file["weights"] = np.arange(10)


def other_kind(path: Path, chance: random.Random) -> None:
    other = "node-n0.h5" if path.name.startswith("rank") else "rank-00000.h5"
    shutil.copy(path.with_name(other), path)


def nowhere(path: Path, chance: random.Random) -> None:
    path.unlink()
    path.symlink_to("/nowhere/at/all.h5")


# what is done to a file -> what is said of it
KINDS = {
    truncate: ("not readable", "no record", "cut off"),
    empty: ("not readable as HDF5",),
    other_program: ("not readable as HDF5",),
    flipped_head: ("not readable as HDF5",),
    flipped_block: ("not readable", "no record"),
    flipped_data: ("rows are lost",),
    attribute("schema", "llem-record-9"): ("holds 'llem-record-9'",),
    attribute("schema", "llem-record-0"): ("holds 'llem-record-0'",),
    attribute("run_id", "zzzzzzzz"): ("of another run, 'zzzzzzzz'",),
    no_record: ("no record of llem",),
    other_kind: ("expected 'llem-record-1'",),
    nowhere: ("not readable as HDF5",),
}


@pytest.fixture
def many(planted):
    """A campaign of runs alike, each with a rank's and a node's record."""
    first = planted.complete("run-0000")
    source = planted.folder / "runs" / first / "attempt-0"
    for number in range(1, DAMAGED + INTACT):
        run_id = planted.run(f"run-{number:04}")
        folder = planted.attempt(run_id)
        for path in source.glob("*.h5"):
            shutil.copy(path, folder)
            with h5py.File(folder / path.name, "r+", libver=("v110", "v110")) as file:
                file["meta"].attrs.modify("run_id", run_id)
                file["meta"].attrs.modify("boot_id", f"b{number:05}")
        planted.end(run_id, boot_id=f"b{number:05}")
    return planted


@pytest.mark.slow
def test_two_hundred_damaged_files_are_named_and_the_rest_is_right(many):
    chance = random.Random(20261127)
    damaged: dict[str, tuple[Path, tuple[str, ...]]] = {}
    kinds = list(KINDS)
    for number in range(DAMAGED):
        folder = many.folder / "runs" / f"run-{number:04}" / "attempt-0"
        path = folder / chance.choice(["rank-00000.h5", "node-n0.h5"])
        kind = kinds[number % len(kinds)]
        kind(path, chance)
        damaged[folder.parent.name] = path, KINDS[kind]

    found = aggregate(many.folder, workers=1)

    rows = {row.run_id: row for row in found.observations}
    assert len(rows) == DAMAGED + INTACT
    for path, causes in damaged.values():
        said = [p for p in found.problems if str(path) in p]
        assert said, f"{path} is not named"
        assert any(cause in text for text in said for cause in causes), said
    # each problem is a damaged file's own
    for problem in found.problems:
        assert any(str(path) in problem for path, _ in damaged.values()), problem
    for run_id, row in rows.items():
        path = damaged[run_id][0] if run_id in damaged else Path("none")
        if path.name != "rank-00000.h5":
            assert (row.tokens, row.loss) == (10_000, 3.0)
        if path.name != "node-n0.h5":
            assert row.energy_j == pytest.approx(1000.0)
        elif math.isfinite(row.energy_j):  # cut off behind the window
            assert row.energy_j == pytest.approx(1000.0, rel=0.03)
