"""Debian packages: install what is missing, and nothing when nothing is."""

from __future__ import annotations

from pathlib import Path

from host import LOGS, ClusterError, run, timed

CLUSTER = (
    "slurm-wlm",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "munge",
    "mariadb-server",
)
APPTAINER = (
    "squashfs-tools",
    "squashfuse",
    "fuse2fs",
    "fuse-overlayfs",
    "uidmap",
    "ca-certificates",
    "patchelf",
)
# The wheel of DeepSpeed's shared-memory op is compiled against Debian's own Python.
IMAGES = ("debootstrap", "python3", "python3-venv", "python3-dev", "g++")

LOCK_WAIT_S = 300
UNATTENDED = {"DEBIAN_FRONTEND": "noninteractive"}


def missing(names: tuple[str, ...]) -> list[str]:
    """Those of `names` that dpkg does not count as installed."""
    asked = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *names]
    listed = run(asked, step="packages", check=False)
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return [name for name in names if name not in installed]


def install(names: tuple[str, ...]) -> None:
    """Install what is missing; the package lists are fetched only if the first try fails."""
    lacking = missing(names)
    if not lacking:
        return
    log = LOGS / "apt.log"
    # Another apt may be at work: wait for its lock instead of failing.
    options = [f"-oDPkg::Lock::Timeout={LOCK_WAIT_S}", "-y", "--no-install-recommends"]
    command = ["apt-get", *options, "install", *lacking]
    with timed(f"installing {' '.join(lacking)}"):
        try:
            run(command, step="packages", env=UNATTENDED, log=log, timeout_s=900)
        except ClusterError:
            update = ["apt-get", f"-oDPkg::Lock::Timeout={LOCK_WAIT_S}", "update"]
            run(update, step="packages", env=UNATTENDED, log=log, timeout_s=300, check=False)
            remedy = "run `apt-get update`, then `up` again; look for a broken mirror in the log"
            run(command, step="packages", env=UNATTENDED, log=log, timeout_s=900, remedy=remedy)


def mirror() -> str:
    """The Debian mirror that this machine's own apt uses; other suites come from the same place."""
    # Label: security updates live elsewhere and are no mirror of the suites.
    filters = ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", *filters]
    listed = run(asked, step="packages").split()
    if not listed:
        # A machine whose package lists were never fetched.
        run(["apt-get", "update"], step="packages", env=UNATTENDED, timeout_s=300, check=False)
        listed = run(asked, step="packages").split()
    if not listed:
        raise ClusterError(
            "packages",
            why="apt knows no Debian mirror",
            remedy="run `apt-get update` and see /etc/apt/sources.list*",
        )
    return listed[0].rstrip("/")


def download_from(suite: str, names: tuple[str, ...], *, into: Path, log: Path) -> list[Path]:
    """Fetch packages of another suite without telling the machine's own apt about that suite.

    `into` is the private apt root: its lists, its caches, its sources. Returns the .deb files.
    """
    for part in ("lists/partial", "cache/archives/partial", "debs"):
        (into / part).mkdir(parents=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (into / "sources.list").write_text(f"deb [signed-by={keyring}] {mirror()} {suite} main\n")
    (into / "status").touch()
    options = [
        f"-oDir::Etc::SourceList={into / 'sources.list'}",
        "-oDir::Etc::SourceParts=/dev/null",
        "-oDir::Etc::PreferencesParts=/dev/null",
        f"-oDir::State::Lists={into / 'lists'}",
        f"-oDir::State::status={into / 'status'}",
        f"-oDir::Cache={into / 'cache'}",
        # A private download as root is fine, and the sandbox user cannot write here.
        "-oAPT::Sandbox::User=root",
    ]
    remedy = f"check that the mirror of /etc/apt carries the suite {suite!r}"
    for words in (["update"], ["download", *names]):
        command = ["apt-get", *options, *words]
        run(
            command,
            step=f"packages of {suite}",
            env=UNATTENDED,
            cwd=into / "debs",
            log=log,
            timeout_s=300,
            remedy=remedy,
        )
    return sorted((into / "debs").glob("*.deb"))
