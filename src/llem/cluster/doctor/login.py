"""The checks of this machine, where commands are typed."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llem._numerals import format_si
from llem.campaign import Site
from llem.cluster.check import FAIL, OK, WARN, Check
from llem.cluster.doctor.place import LITTLE_HOME_BYTES, place_rows, probe, room, room_rows
from llem.cluster.doctor.scheduler import examine_scheduler
from llem.cluster.scheduler.gate import run_program
from llem.errors import LlemError

# Domains that hold the processors' energy.
WITH_PROCESSORS = ("package", "dram", "module", "node")
NEEDED = ("numpy", "scipy", "h5py", "pydantic", "jinja2", "rich", "submitit")


def examine(site: Site, *, folder: Path, planned_digest: str = "") -> list[Check]:
    """All checks for a site, on this machine; `folder` is where campaigns would lie.

    `planned_digest` is the image's `sha256:...` in a plan that was made before.
    """
    rows = python_rows({name: installed(name) for name in (*NEEDED, "matplotlib")})
    if site.executor == "slurm":
        rows += examine_scheduler(site)
        rows += site_rows(site, told={row.name for row in rows})
    if site.container is not None:
        rows += examine_container(site, planned_digest=planned_digest)
    elif site.executor == "local":
        rows += training_rows(*(installed(n) for n in ("torch", "accelerate", "deepspeed")))
    rows += place_rows(probe(folder))
    for name, place in (("home", Path.home()), ("temporary files", Path(tempfile.gettempdir()))):
        rows += room_rows(name, room(place), little=LITTLE_HOME_BYTES, none=0)
    if site.executor == "local":
        rows += meter_rows(*meters())
    return rows


def site_rows(site: Site, *, told: Collection[str] = ()) -> list[Check]:
    """What a job will not get as the site means it; `told` are rows that said so in figures."""
    names = {"limits.time": "time limit", "cpus_per_rank": "CPUs"}
    return [
        Check(names[key], WARN, text, then)
        for key, text, then in site.doubts()
        if names[key] not in told
    ]


def installed(name: str) -> str | None:
    """The version of a package, None where it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def python_rows(found: dict[str, str | None]) -> list[Check]:
    """Versions here; what the base install lacks."""
    missing = [name for name in NEEDED if found[name] is None]
    seen = f"Python {sys.version.split()[0]}, h5py {found['h5py']}, numpy {found['numpy']}"
    if missing:
        return [Check("python", FAIL, f"missing: {', '.join(missing)}", "pip install llem")]
    rows = [Check("python", OK, seen)]
    if found["matplotlib"] is None:
        rows.append(
            Check("plots", WARN, "no matplotlib: reports have no plots", "pip install 'llem[plot]'")
        )
    return rows


def training_rows(torch: str | None, accelerate: str | None, deepspeed: str | None) -> list[Check]:
    """Whether ranks can train where these packages are."""
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


def meters() -> tuple[list[dict[str, str]], list[str]]:
    """Devices whose energy can be read here, and why others cannot."""
    from llem.energy import choose, make_meters, parse_meters

    measuring, model = make_meters(parse_meters("auto"))
    chosen = choose(measuring, model=model)
    devices = [
        {"name": d.name, "domain": d.domain, "source": d.source, "quality": d.quality,
         "uuid": d.uuid}
        for _, d in chosen.devices
    ]  # fmt: skip
    for meter in [*measuring, *([model] if model else [])]:
        meter.close()
    return devices, list(chosen.reasons)


def meter_rows(devices: list[dict[str, str]], reasons: list[str]) -> list[Check]:
    """An energy counter is what is wanted; a model is an estimate. Processors have a row of
    their own: they are often there and closed to users, which a site can change."""
    seen = ", ".join(f"{d['name']} ({d['source']}, {d['quality']})" for d in devices)
    # Processors that are counted do not make up for GPUs that are not.
    short = any(r.startswith("the job holds") for r in reasons)
    counted = any(d["quality"] == "counter" for d in devices) and not short
    rows = [
        Check(
            "energy", OK if counted else WARN, seen or "no meter",
            "" if counted else "; ".join(reasons),
        )
    ]  # fmt: skip
    inside = [d for d in devices if d["domain"] in WITH_PROCESSORS and d["quality"] != "model"]
    if inside:
        by = ", ".join(dict.fromkeys(d["source"] for d in inside))
        domains = "+".join(dict.fromkeys(d["domain"] for d in inside))
        rows.append(Check("energy of processors", OK, f"{domains}, by {by}"))
    elif closed := [r for r in reasons if r.startswith("rapl: ") and "permission" in r]:
        found, _, remedy = closed[0].partition("; ")
        rows.append(Check("energy of processors", WARN, found, remedy))
    return rows


def examine_container(site: Site, *, planned_digest: str = "") -> list[Check]:
    """The runtime, what it needs of the kernel, and the image."""
    assert site.container is not None
    container = site.container
    try:
        seen = run_program([container.runtime, "--version"]).strip()
        rows = [Check("container", OK, seen)]
    except LlemError as error:
        # Many clusters have it on their nodes alone, or behind a module.
        behind = bool(site.modules)
        remedy = "its module is loaded in jobs: see --job" if behind else "ask your site"
        state = WARN if behind or container.image is None else FAIL
        rows = [Check("container", state, error.message, remedy)]
    rows += kernel_rows(
        fuse=os.access("/dev/fuse", os.R_OK | os.W_OK), namespaces=user_namespaces()
    )
    if container.image is None:
        for key, then in site.left_open():
            if key == "container.image":
                remedy = f"site: {{base: {site.name}, container: {{image: X.sif}}}}"
                rows.append(Check("image", WARN, f"none given: {then}", remedy))
        return rows
    return rows + image_rows(Path(container.image), planned_digest)


def user_namespaces() -> int | None:
    """How many user namespaces the kernel allows; None where it does not say."""
    try:
        return int(Path("/proc/sys/user/max_user_namespaces").read_text())
    except (OSError, ValueError):
        return None


def kernel_rows(*, fuse: bool, namespaces: int | None) -> list[Check]:
    """What an image is mounted with where the runtime is not setuid root."""
    rows = []
    if namespaces == 0:
        text = "unprivileged user namespaces are off"
        rows.append(
            Check("user namespaces", WARN, text, "the runtime must be setuid root: ask your site")
        )
    else:
        rows.append(Check("user namespaces", OK, "allowed" if namespaces else "not told"))
    if fuse:
        rows.append(Check("/dev/fuse", OK, "writable"))
    else:
        rows.append(
            Check("/dev/fuse", WARN, "not writable here", "images are unpacked at each start")
        )
    return rows


def image_rows(image: Path, planned_digest: str) -> list[Check]:
    """The image: there, and the one that the plan was made with."""
    if not image.exists():
        return [Check("image", FAIL, f"no image {image}", "llem image build --out IMAGE.sif")]
    if not os.access(image, os.R_OK):
        return [Check("image", FAIL, f"{image} cannot be read", f"chmod a+r {image}")]
    seen = (
        f"{image}, {format_si(image.stat().st_size, 'B')}"
        if image.is_file()
        else f"{image}, a folder"
    )
    if not planned_digest or not image.is_file():
        return [Check("image", OK, seen)]
    from llem.cluster.image import digest

    now = f"sha256:{digest(image)}"
    if now != planned_digest:
        text = f"{seen}: {now[:19]}..., the plan has {planned_digest[:19]}..."
        return [
            Check("image", FAIL, text, "plan again with --replace, or put the planned image back")
        ]
    return [Check("image", OK, f"{seen}, {now[:19]}... as planned")]
