"""Apptainer for an unprivileged user on a Debian whose C library is older than Apptainer's.

Debian carries Apptainer only in sid, linked against a newer glibc. The binaries are unpacked into
the cache with sid's C library beside them, and told by patchelf to use that one. Apptainer finds
its own prefix from where its binary lies, so nothing is written to /usr.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import packages
from host import CACHE, USER, ClusterError, cached, ensure_user, key, run, succeeds

LINK = Path("/usr/local/bin/apptainer")
SUITE = "sid"
FROM_SUITE = ("apptainer", "libc6", "libsqlite3-0", "libseccomp2")
PATCHED = ("usr/bin/apptainer", "usr/lib/x86_64-linux-gnu/apptainer/bin/starter")
# Part of the cache key: raise it when the unpacking below changes.
RECIPE = "2"


def find() -> Path | None:
    """The program that users get, ours or the machine's own."""
    path = shutil.which("apptainer", path="/usr/local/bin:/usr/bin:/bin")
    return Path(path) if path else None


def version() -> str | None:
    program = find()
    if program is None:
        return None
    said = run([program, "--version"], step="apptainer", check=False)
    return said.removeprefix("apptainer version ").strip()


def ensure() -> Path:
    """Install what is missing and see that the user can really run it."""
    packages.install(packages.APPTAINER)
    ensure_user()
    open_fuse()
    program = find()
    if program is None or is_ours(program):
        root = cached("apptainer", key(RECIPE, SUITE, *FROM_SUITE), build)
        link_to(root / PATCHED[0])
        program = LINK
    if not succeeds([program, "--version"], user=USER):
        raise ClusterError(
            "apptainer",
            why=f"{program} does not run as user {USER}",
            remedy=f"remove {CACHE}/apptainer-* and run `up` again; the cache must be readable",
        )
    return program


def is_ours(program: Path) -> bool:
    return program.is_symlink() and CACHE in program.readlink().parents


def link_to(target: Path) -> None:
    if LINK.is_symlink() and LINK.readlink() == target:
        return
    draft = LINK.with_name("apptainer.new")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(LINK)


def open_fuse() -> None:
    """An unprivileged Apptainer mounts its image through FUSE."""
    device = Path("/dev/fuse")
    if not device.exists():
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(10, 229))
    device.chmod(0o666)


def build(scratch: Path, log: Path) -> Path:
    """Unpack, put sid's libraries beside, patch."""
    final = CACHE / f"apptainer-{key(RECIPE, SUITE, *FROM_SUITE)}"
    root = scratch / "root"
    lib = root / "lib"
    lib.mkdir(parents=True)
    for deb in packages.download_from(SUITE, FROM_SUITE, into=scratch / "apt", log=log):
        name = deb.name.split("_")[0]
        target = root if name == "apptainer" else scratch / name
        run(["dpkg-deb", "--extract", deb, target], step="apptainer", log=log)
        if name != "apptainer":
            for library in (target / "usr/lib/x86_64-linux-gnu").glob("*.so*"):
                shutil.copy2(library, lib / library.name, follow_symlinks=False)
    # Where a relocated Apptainer looks for its configuration and its mount point: the program
    # below usr, the starter below usr/lib.
    for part in ("etc", "var"):
        (root / part).rename(root / "usr" / part)
        (root / "usr" / "lib" / part).symlink_to(f"../{part}")
    shutil.rmtree(root / "usr" / "share")
    for program in PATCHED:
        # --force-rpath: RUNPATH would not reach the libraries of libraries.
        loader = ["--set-interpreter", f"{final}/lib/ld-linux-x86-64.so.2"]
        search = ["--force-rpath", "--set-rpath", f"{final}/lib"]
        run(["patchelf", *loader, *search, root / program], step="apptainer", log=log)
    return root
