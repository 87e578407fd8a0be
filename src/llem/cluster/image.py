"""Building and verifying the Apptainer image that ranks run in."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import distribution
from pathlib import Path

from llem._resources import PACKAGE, resource_folder
from llem._version import __version__
from llem.cluster.check import FAIL, OK, WARN, Check
from llem.cluster.scheduler.gate import run_program
from llem.errors import ClusterError, Fault, InputError, LlemError, did_you_mean

BUILD_TIMEOUT_S = 4 * 3600.0
# Builds of torch without CUDA, which PyPI does not have for Linux.
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


@dataclass(frozen=True)
class Kind:
    """An image that llem builds: from `definition`, with `requirements-KIND.txt` and llem.

    `arguments` are what the definition is told beside what the user chose, `index` is asked beside
    PyPI, and `fetching` are further arguments where there is no wheelhouse.
    """

    definition: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    index: str = ""
    fetching: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    "cpu": Kind("llem-cpu.def", index=CPU_INDEX, fetching={"compile": "yes"}),
    "cuda": Kind("llem-cuda.def"),
    "vllm": Kind("llem-vllm.def"),
    "vllm-cpu": Kind("llem-vllm.def", arguments={"device": "cpu"}, index=CPU_INDEX),
}

# Runs inside the image with its own Python and prints one JSON object on its last line.
_PROBE = """
import json, os, sys, tempfile
seen = {"python": sys.version.split()[0]}
for name in ("llem", "torch", "accelerate", "deepspeed", "h5py", "numpy", "submitit",
             "vllm"):
    try:
        seen[name] = __import__("importlib.metadata").metadata.version(name)
    except Exception as error:
        seen[name] = None
try:
    import deepspeed
    seen["deepspeed_import"] = "ok"
except Exception as error:
    seen["deepspeed_import"] = repr(error)
try:
    if seen["vllm"] is not None:
        from vllm.v1.metrics.loggers import StatLoggerBase
    seen["vllm_import"] = "ok"
except Exception as error:
    seen["vllm_import"] = repr(error)
try:
    from llem.records import rank_writer, read_rank
    with tempfile.TemporaryDirectory() as folder:
        with rank_writer(folder + "/rank.h5", meta={"run_id": "verify"}) as writer:
            writer.event("verify")
            live = len(read_rank(folder + "/rank.h5").events)
    seen["hdf5"] = "ok" if live == 1 else "a live record could not be read"
except Exception as error:
    seen["hdf5"] = repr(error)
seen["user_site"] = bool(__import__("site").ENABLE_USER_SITE)
print("\\n" + json.dumps(seen))
"""


def build_image(
    out: Path,
    *,
    kind: str = "cpu",
    wheelhouse: Path | None = None,
    base: str | None = None,
    index: str | None = None,
    runtime: str = "apptainer",
    squash_args: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Build the image `out` (a SIF) as an ordinary user, with this very llem inside.

    With a `wheelhouse` (a folder of wheels: all that requirements-KIND.txt asks for) and a `base`
    SIF nothing is fetched; without, the base image's registry is asked, and a package index:
    `index` in the place of PyPI, such as a site's mirror. `squash_args` goes to mksquashfs. `say`
    is called with each line that the builder prints. Raises InputError, ClusterError.
    """
    faults = []
    if kind not in KINDS:
        hint = did_you_mean(kind, tuple(KINDS))
        faults.append(Fault("kind", f"{kind!r} is not one of {', '.join(KINDS)}", hint))
    if out.exists():
        faults.append(Fault("--out", f"{out} exists already"))
    if wheelhouse is not None and not wheelhouse.is_dir():
        faults.append(Fault("--wheelhouse", f"{wheelhouse} is not a folder"))
    if base is not None and base.endswith(".sif") and not Path(base).is_file():
        faults.append(Fault("--base", f"no image {base}"))
    if index is not None and wheelhouse is not None:
        faults.append(Fault("--index", "of a wheelhouse nothing is fetched: give one of them"))
    if faults:
        raise InputError("image build", faults)
    if shutil.which(runtime) is None:
        raise LlemError(f"{runtime} is not on PATH", remedy="load its module, or ask your site")
    of = KINDS[kind]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llem-image-") as scratch:
        wheels = Path(scratch) / "wheelhouse"
        wheels.mkdir()
        # Wheels and sdists: the CUDA image compiles DeepSpeed against the base's own torch.
        for package in sorted(wheelhouse.iterdir()) if wheelhouse else []:
            mine = package.name.startswith("llem-")
            if package.suffix in (".whl", ".gz") and not mine:
                _link_or_copy(package, wheels / package.name)
        own = own_wheel(wheels)
        requirements = (resource_folder("apptainer") / f"requirements-{kind}.txt").read_text()
        text = f"{requirements.rstrip()}\nllem @ file:///opt/wheelhouse/{own.name}\n"
        (wheels / "requirements.txt").write_text(text)
        args = [runtime, "build", "--build-arg", f"wheelhouse={wheels}"]
        if squash_args:
            args += ["--mksquashfs-args", squash_args]
        if base is not None:
            args += ["--build-arg", f"base={base}"]
            if base.endswith(".sif"):
                args += ["--build-arg", "bootstrap=localimage"]
        given = dict(of.arguments)
        if wheelhouse is not None:
            given["pip"] = "--no-index"
        else:
            extra = f"--extra-index-url {of.index}" if of.index else ""
            given |= {"pip": f"--index-url {shlex.quote(index)}" if index else extra, **of.fetching}
        for name, value in given.items():
            args += ["--build-arg", f"{name}={value}"]
        # Built beside its place and renamed: a torn image is never taken for one.
        partial = out.with_name(f".{out.name}.{os.getpid()}.partial.sif")
        definition = resource_folder("apptainer") / of.definition
        try:
            _stream([*args, str(partial), str(definition)], say)
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    return out


def verify_image(image: Path, *, runtime: str = "apptainer") -> list[Check]:
    """Look into an image: versions, DeepSpeed, records, and whether its llem is this one."""
    if not image.exists():
        raise InputError(str(image), ["there is no such image"])
    printed = run_program(
        [runtime, "exec", str(image), "python3", "-c", _PROBE], timeout_s=300
    )  # fmt: skip
    try:
        seen = json.loads(printed.strip().splitlines()[-1])
    except (ValueError, IndexError):
        raise ClusterError(f"{image}: the probe inside printed {printed[-200:]!r}") from None
    rows = [Check("image", OK, f"{image}, sha256:{digest(image)}")]
    same = seen["llem"] == __version__
    rows.append(
        Check("llem", OK if same else FAIL, f"{seen['llem']} inside, {__version__} here",
              "" if same else "llem image build")
    )  # fmt: skip
    for name in ("torch", "accelerate", "h5py", "numpy", "submitit"):
        there = seen[name] is not None
        rows.append(Check(name, OK if there else FAIL, seen[name] or "not installed"))
    works = seen["deepspeed_import"] == "ok"
    if seen["vllm"] is not None:
        # An image that serves, and never trains.
        loads = seen["vllm_import"] == "ok"
        said = f"{seen['vllm']}: {seen['vllm_import']}"
        rows.append(Check("vllm", OK if loads else FAIL, said))
    else:
        said = f"{seen['deepspeed']}: {seen['deepspeed_import']}"
        rows.append(Check("deepspeed", OK if works else FAIL, said))
    rows.append(Check("HDF5 records", OK if seen["hdf5"] == "ok" else FAIL, seen["hdf5"]))
    if seen["user_site"]:
        rows.append(Check("user site", WARN, "~/.local can shadow the image's packages",
                          "set PYTHONNOUSERSITE=1 in the image"))  # fmt: skip
    return rows


def digest(image: Path) -> str:
    """sha256 of the image file."""
    with open(image, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_wheel(folder: Path) -> Path:
    """Pack the running llem, installed or in a checkout, into a wheel; returns its path.

    The image then holds the very code that planned the campaign. The same files give the same
    bytes.
    """
    name = f"llem-{__version__}"
    path = folder / f"{name}-py3-none-any.whl"
    info = f"{name}.dist-info"
    files = {
        f"llem/{file.relative_to(PACKAGE)}": file.read_bytes()
        for file in sorted(PACKAGE.rglob("*"))
        if file.is_file() and file.suffix not in (".pyc", ".pyo")
    }
    for resource in ("apptainer", "slurm_templates"):
        root = resource_folder(resource)
        for file in sorted(root.rglob("*")):
            if file.is_file():
                files[f"llem/{resource}/{file.relative_to(root)}"] = file.read_bytes()
    installed = distribution("llem")
    files[f"{info}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    files[f"{info}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    files[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: llem\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    rows = []
    for target, content in files.items():
        sha = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{target},sha256={sha},{len(content)}")
    rows.append(f"{info}/RECORD,,")
    files[f"{info}/RECORD"] = ("\n".join(rows) + "\n").encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for target, content in files.items():
            entry = zipfile.ZipInfo(target, date_time=(2020, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def _link_or_copy(source: Path, target: Path) -> None:
    """A wheelhouse of vLLM is over a gigabyte, and the definition copies it once more."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _stream(args: list[str], say: Callable[[str], None] | None) -> None:
    """Run a long program, passing on its lines; raises ClusterError with its last words."""
    last: list[str] = []
    with subprocess.Popen(
        args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            last = [*last[-19:], line.rstrip()]
            if say is not None:
                say(line.rstrip())
    if process.returncode != 0:
        words = "\n  ".join(last)
        raise ClusterError(f"{args[0]} build failed with status {process.returncode}:\n  {words}")
