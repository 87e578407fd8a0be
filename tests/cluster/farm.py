"""The SLURM farm as a whole: configure it, start what is not running, repair it, stop it."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path

import packages
import slurm
from daemons import MYSQL_SOCKET, ensure, farm_daemons, stop
from host import (
    LOGS,
    STATE,
    USER,
    ClusterError,
    ensure_user,
    folder,
    run,
    say,
    timed,
    user_exists,
    wait_until,
    write_if_changed,
)
from slurm import Farm

SLURM_CONF = Path("/etc/slurm/slurm.conf")
HOSTS = Path("/etc/hosts")
NODES_TIMEOUT_S = 180.0
DRAIN_TIMEOUT_S = 20.0


def this_farm() -> Farm:
    return Farm(host=socket.gethostname().split(".")[0], state=STATE)


def up(farm: Farm) -> None:
    """Bring the farm to where jobs run, from whatever state it is in."""
    packages.install(packages.CLUSTER)
    ensure_user()
    refuse_foreign_slurm()
    make_folders(farm)
    make_gpus(farm)
    name_nodes(farm)
    if write_configuration(farm) and any(daemon.pid for daemon in farm_daemons(farm)):
        say("the configuration changed: restarting SLURM")
        stop_daemons(farm, prefix="slurm")
    for daemon in farm_daemons(farm):
        if daemon.name == "mariadbd":
            create_database_files()
        if ensure(daemon):
            say(f"started {daemon.name}")
            if daemon.name == "mariadbd":
                create_database()
        if daemon.name == "slurmdbd":
            ensure_accounts(farm)
    resume_nodes(farm)


def down(farm: Farm) -> None:
    """End the jobs and stop what `up` started; caches, logs and accounting stay."""
    if any(daemon.pid for daemon in farm_daemons(farm) if daemon.name == "slurmctld"):
        end_jobs()
    stop_daemons(farm)
    if HOSTS.exists():
        edit_hosts(slurm.hosts_without_nodes(HOSTS.read_text()))


def health(farm: Farm) -> tuple[dict[str, str], list[str]]:
    """The state of each node, and what is missing for the farm to run jobs."""
    missing = []
    if shutil.which("sinfo") is None:
        return {}, ["SLURM is not installed"]
    if not user_exists():
        missing.append(f"user {USER} does not exist")
    for daemon in farm_daemons(farm):
        if not daemon.ready():
            missing.append(f"{daemon.name} does not answer")
    states = {} if "slurmctld does not answer" in missing else read_nodes()
    for name in farm.node_names:
        if not slurm.is_usable(state := states.get(name, "absent")):
            missing.append(f"node {name} is {state}")
    return states, missing


def refuse_foreign_slurm() -> None:
    """Never overwrite a cluster's own configuration."""
    if SLURM_CONF.exists() and slurm.MARK not in SLURM_CONF.read_text():
        raise ClusterError(
            "configuration",
            why=f"{SLURM_CONF} was not written by this tool",
            remedy="this host has a SLURM of its own; use another host, or move that file away",
        )


def make_folders(farm: Farm) -> None:
    folder(STATE)
    folder(LOGS, mode=0o1777)
    folder(STATE / "run", mode=0o1777)
    folder(STATE / "slurmctld", owner="slurm", mode=0o700)
    for name in farm.node_names:
        folder(STATE / f"slurmd.{name}")
    folder(Path("/run/munge"), owner="munge")


def make_gpus(farm: Farm) -> None:
    """Stand-ins for /dev/nvidia*: SLURM stats them, and names no GPU to a job for a plain file.

    Links to a character device that every machine and container has, so no mknod is needed.
    """
    for path in farm.gpu_files:
        folder(path.parent)
        if not path.is_symlink():
            path.unlink(missing_ok=True)
            path.symlink_to("/dev/null")


def name_nodes(farm: Farm) -> None:
    edit_hosts(slurm.hosts_with_nodes(HOSTS.read_text() if HOSTS.exists() else "", farm))


def edit_hosts(text: str) -> None:
    """In place: in a container /etc/hosts is a mount that cannot be renamed over."""
    if not HOSTS.exists() or HOSTS.read_text() != text:
        HOSTS.write_text(text)


def write_configuration(farm: Farm) -> bool:
    written = [
        write_if_changed(SLURM_CONF, slurm.slurm_conf(farm)),
        write_if_changed(SLURM_CONF.with_name("gres.conf"), slurm.gres_conf(farm)),
        write_if_changed(
            SLURM_CONF.with_name("slurmdbd.conf"),
            slurm.slurmdbd_conf(farm),
            mode=0o600,
            owner="slurm",
        ),
    ]
    return any(written)


def create_database_files() -> None:
    """A MariaDB data folder of our own, whole or absent."""
    final = STATE / "mysql"
    if final.exists():
        return
    draft = STATE / "mysql.new"
    shutil.rmtree(draft, ignore_errors=True)
    folder(draft, owner="mysql", mode=0o700)
    command = ["mariadb-install-db", "--no-defaults", f"--datadir={draft}", "--user=mysql"]
    options = ["--auth-root-authentication-method=socket", "--skip-test-db"]
    with timed("creating the database"):
        run([*command, *options], step="database", log=LOGS / "mariadb-install.log")
    draft.rename(final)


def create_database() -> None:
    """The accounting database; the slurm user is known by its socket, without a password."""
    statements = (
        "CREATE DATABASE IF NOT EXISTS slurm_acct_db;"
        "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;"
        "GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"
    )
    client = ["mariadb", "--no-defaults", f"--socket={MYSQL_SOCKET}"]
    run(client, step="database", stdin=statements)


def ensure_accounts(farm: Farm) -> None:
    """slurmctld refuses to start for a cluster that accounting does not know."""
    known = run(["sacctmgr", "-nP", "show", "cluster", "format=cluster"], step="accounting").split()
    if farm.cluster not in known:
        run(["sacctmgr", "-i", "add", "cluster", farm.cluster], step="accounting")
    users = run(["sacctmgr", "-nP", "show", "user", "format=user"], step="accounting").split()
    if USER not in users:
        account = ["add", "account", USER, f"cluster={farm.cluster}"]
        # May be there already, from an `up` that was interrupted.
        run(["sacctmgr", "-i", *account], step="accounting", check=False)
        run(["sacctmgr", "-i", "add", "user", USER, f"account={USER}"], step="accounting")


def read_nodes() -> dict[str, str]:
    asked = ["sinfo", "--noheader", "--Node", "--format", "%N %T"]
    return slurm.node_states(run(asked, step="nodes", check=False))


def resume_nodes(farm: Farm) -> None:
    """Clear what an earlier crash left on the nodes, and wait until each can take a job."""
    last_try = 0.0

    def usable() -> bool:
        nonlocal last_try
        states = read_nodes()
        wrong = [name for name in farm.node_names if not slurm.is_usable(states.get(name, ""))]
        if wrong and time.monotonic() - last_try > 2.0:
            last_try = time.monotonic()
            resume = ["scontrol", "update", f"nodename={','.join(wrong)}", "state=resume"]
            run(resume, step="nodes", check=False)
        return not wrong

    wait_until(
        usable,
        step="nodes",
        timeout_s=NODES_TIMEOUT_S,
        log=LOGS / "slurmctld.log",
        remedy="see `sinfo -R` and the slurmd logs beside this one; `down` and `up` start afresh",
    )


def end_jobs() -> None:
    """Cancel everything, for a slurmstepd outlives its slurmd."""
    run(["scancel", f"--user={USER}"], step="jobs", check=False)
    deadline = time.monotonic() + DRAIN_TIMEOUT_S
    while run(["squeue", "--noheader"], step="jobs", check=False).strip():
        if time.monotonic() > deadline:
            say("some jobs did not end; their processes may stay")
            return
        time.sleep(0.2)


def stop_daemons(farm: Farm, *, prefix: str = "") -> None:
    for daemon in reversed(farm_daemons(farm)):
        if daemon.name.startswith(prefix) and stop(daemon):
            say(f"stopped {daemon.name}")


def version() -> str | None:
    if shutil.which("sinfo") is None:
        return None
    return run(["sinfo", "--version"], step="slurm", check=False).removeprefix("slurm-wlm ").strip()
