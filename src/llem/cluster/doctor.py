"""Checks of this machine: what a campaign needs, what is there, and what to do about the rest."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llem.campaign import Site
from llem.cluster.gate import run_program
from llem.errors import LlemError

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class Check:
    """One row: what was looked at, `ok`, `warn` or `fail`, what was seen, what to do."""

    name: str
    state: str
    seen: str
    remedy: str = ""


def examine(site: Site, *, folder: Path) -> list[Check]:
    """All checks for a site, on this machine; `folder` is where campaigns would lie."""
    checks: list[Callable[[], list[Check]]] = [
        _python,
        lambda: _filesystem(folder),
        _meters,
    ]
    if site.executor == "slurm":
        checks.append(lambda: _slurm(site))
    if site.container is not None:
        checks.append(lambda: _container(site))
    elif site.executor == "local":
        checks.append(_training)
    return [row for check in checks for row in check()]


def _package(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _python() -> list[Check]:
    names = ("numpy", "scipy", "h5py", "pydantic", "jinja2", "rich", "submitit")
    found = {name: _package(name) for name in names}
    missing = [name for name, has in found.items() if has is None]
    seen = f"Python {sys.version.split()[0]}, h5py {found['h5py']}, numpy {found['numpy']}"
    if missing:
        return [Check("python", FAIL, f"missing: {', '.join(missing)}", "pip install llem")]
    rows = [Check("python", OK, seen)]
    if _package("matplotlib") is None:
        rows.append(
            Check("plots", WARN, "no matplotlib: reports have no plots", "pip install 'llem[plot]'")
        )
    return rows


def _training() -> list[Check]:
    torch, accelerate, deepspeed = (_package(n) for n in ("torch", "accelerate", "deepspeed"))
    if torch is None or accelerate is None:
        missing = " and ".join(
            n for n, v in (("torch", torch), ("accelerate", accelerate)) if not v
        )
        return [Check("training", FAIL, f"{missing} not installed", "pip install 'llem[train]'")]
    seen = f"torch {torch}, accelerate {accelerate}"
    if deepspeed is None:
        note = "ZeRO stages above 0 fall back to plain data parallelism"
        return [Check("training", OK, f"{seen}, no DeepSpeed", note)]
    return [Check("training", OK, f"{seen}, deepspeed {deepspeed}")]


def _filesystem(folder: Path) -> list[Check]:
    rows = []
    place = next((p for p in (folder, *folder.resolve().parents) if p.is_dir()), Path.cwd())
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".llem-doctor-") as scratch:
            start = time.perf_counter()
            with open(Path(scratch) / "x", "wb") as file:
                file.write(b"x" * 4096)
                file.flush()
                os.fsync(file.fileno())
            os.replace(Path(scratch) / "x", Path(scratch) / "y")
            took = time.perf_counter() - start
            state = OK if took < 1 else WARN
            rows.append(Check("write, fsync, rename", state, f"{took * 1e3:.1f} ms in {place}"))
            rows.append(_hdf5(Path(scratch)))
    except OSError as error:
        return [Check("filesystem", FAIL, f"{place}: {error}", "choose a folder you can write")]
    free = shutil.disk_usage(place).free
    state = OK if free > 5e9 else WARN
    rows.append(Check("free space", state, f"{free / 1e9:.1f} GB in {place}"))
    return rows


def _hdf5(scratch: Path) -> Check:
    from llem.records import rank_writer, read_rank

    try:
        with rank_writer(scratch / "rank.h5", meta={"run_id": "doctor"}) as writer:
            writer.event("doctor")
            live = read_rank(scratch / "rank.h5")
        closed = read_rank(scratch / "rank.h5")
    except (LlemError, OSError, RuntimeError) as error:
        return Check("HDF5 records", FAIL, str(error), "choose another file system for campaigns")
    if len(live.events) != 1 or not closed.closed:
        return Check("HDF5 records", WARN, "a live record could not be read while it was written")
    return Check("HDF5 records", OK, "written, read live, closed, read again")


def _meters() -> list[Check]:
    from llem.energy import CpuModel, NvmlMeter, choose

    meters = (NvmlMeter(), CpuModel())
    chosen = choose(meters[:1], model=meters[1])
    devices = [device for _, device in chosen.devices]
    seen = ", ".join(f"{d.name} ({d.source}, {d.quality})" for d in devices) or "no meter"
    state = OK if any(d.quality == "counter" for d in devices) else WARN
    remedy = "" if state == OK else "; ".join(chosen.reasons)
    for meter in meters:
        meter.close()
    return [Check("energy", state, seen, remedy)]


def _slurm(site: Site) -> list[Check]:
    from llem.cluster.slurm import has_accounting

    try:
        seen = run_program(["sinfo", "--version"]).strip()
        nodes = run_program(["sinfo", "--noheader", "--format=%P %D %T"]).strip()
    except LlemError as error:
        return [Check("scheduler", FAIL, error.message, error.remedy or "is slurmctld up?")]
    partitions = {line.split()[0].rstrip("*") for line in nodes.splitlines() if line.split()}
    rows = [Check("scheduler", OK, f"{seen}; {'; '.join(nodes.splitlines()[:4])}")]
    if site.partition and site.partition not in partitions:
        rows.append(
            Check("partition", FAIL, f"no partition {site.partition!r}",
                  f"one of: {', '.join(sorted(partitions))}")
        )  # fmt: skip
    config = run_program(["scontrol", "show", "config"])
    sizes = [x.split("=")[1].strip() for x in config.splitlines() if x.startswith("MaxArraySize")]
    if sizes and int(sizes[0]) < site.limits.array_size:
        rows.append(
            Check("MaxArraySize", FAIL, f"{sizes[0]}, the site says {site.limits.array_size}",
                  f"limits: {{array_size: {sizes[0]}}}")
        )  # fmt: skip
    elif sizes:
        rows.append(Check("MaxArraySize", OK, sizes[0]))
    if has_accounting():
        rows.append(Check("accounting", OK, "sacct answers"))
    else:
        rows.append(
            Check("accounting", WARN, "no accounting", "llem works without; causes say less")
        )
    return rows


def _container(site: Site) -> list[Check]:
    assert site.container is not None
    container = site.container
    rows = []
    try:
        rows.append(Check("container", OK, run_program([container.runtime, "--version"]).strip()))
    except LlemError as error:
        rows.append(Check("container", FAIL, error.message, "load its module, or ask your site"))
    image = Path(container.image or "")
    if image.exists():
        rows.append(Check("image", OK, str(image)))
    else:
        rows.append(Check("image", FAIL, f"no image {image}", "llem image build --out IMAGE.sif"))
    fuse = Path("/dev/fuse")
    if not os.access(fuse, os.R_OK | os.W_OK):
        rows.append(
            Check("/dev/fuse", WARN, "not writable here", "images are unpacked at each start")
        )
    return rows
