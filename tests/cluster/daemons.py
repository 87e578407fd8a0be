"""Starting, watching and stopping the daemons, in order, each by a pid file of its own.

All run in the foreground in a session of their own, and this module writes their pid files: one
way to start, find and stop seven different daemons. What answers already and is not ours (a munged
of the machine) is used and left alone.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from host import (
    CLEAN_ENVIRONMENT,
    LOGS,
    STATE,
    ClusterError,
    folder,
    identity,
    say,
    succeeds,
    wait_until,
)
from slurm import Farm

MYSQL_SOCKET = STATE / "run" / "mysqld.sock"
STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Daemon:
    """One daemon: how to start it, and how to see that it serves."""

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], bool]
    user: str = "root"
    env: dict[str, str] = field(default_factory=dict)
    timeout_s: float = 120.0
    # Where the daemon itself writes, if not on stderr.
    own_log: Path | None = None

    @property
    def pid_file(self) -> Path:
        return STATE / "run" / f"{self.name}.pid"

    @property
    def log(self) -> Path:
        return self.own_log or LOGS / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        """The pid if our daemon lives; a number that another program has now does not count."""
        try:
            pid = int(self.pid_file.read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        # A zombie's command line is empty.
        return pid if words[0].decode() == self.argv[0] else None


def farm_daemons(farm: Farm) -> list[Daemon]:
    """Every daemon in the order in which they must start."""
    mariadbd = (
        "/usr/sbin/mariadbd",
        "--no-defaults",
        f"--datadir={STATE / 'mysql'}",
        f"--socket={MYSQL_SOCKET}",
        f"--pid-file={STATE / 'run' / 'mysqld.own.pid'}",
        # Local socket only: no port, and so no password to keep.
        "--skip-networking",
        "--innodb-buffer-pool-size=128M",
        "--innodb-lock-wait-timeout=900",
        # Durability is worth nothing here; fsync on a busy disk is slow.
        "--innodb-flush-log-at-trx-commit=0",
    )
    nodes = [
        Daemon(
            name=f"slurmd.{node}",
            argv=("/usr/sbin/slurmd", "-D", "-N", node),
            ready=partial(listens, port),
            own_log=LOGS / f"slurmd.{node}.log",
        )
        for port, node in enumerate(farm.node_names, farm.first_port)
    ]
    return [
        Daemon(
            name="munged",
            argv=("/usr/sbin/munged", "--foreground"),
            ready=munge_answers,
            user="munge",
        ),
        Daemon(
            name="mariadbd",
            argv=mariadbd,
            ready=lambda: succeeds(
                ["mariadb-admin", "--no-defaults", f"--socket={MYSQL_SOCKET}", "ping"]
            ),
            user="mysql",
        ),
        Daemon(
            name="slurmdbd",
            argv=("/usr/sbin/slurmdbd", "-D"),
            ready=accounting_answers,
            user="slurm",
            env={"MYSQL_UNIX_PORT": str(MYSQL_SOCKET)},
            own_log=LOGS / "slurmdbd.log",
        ),
        Daemon(
            name="slurmctld",
            argv=("/usr/sbin/slurmctld", "-D"),
            ready=lambda: succeeds(["scontrol", "ping"]),
            user="slurm",
            own_log=LOGS / "slurmctld.log",
        ),
        *nodes,
    ]


def munge_answers() -> bool:
    return succeeds(["munge", "--no-input"])


def accounting_answers() -> bool:
    # The port first: without it sacctmgr retries for long.
    return listens(6819) and succeeds(["sacctmgr", "-n", "show", "cluster"])


def listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ensure(daemon: Daemon) -> bool:
    """Start a daemon unless it serves already; True when it was started now."""
    if daemon.pid is not None:
        if daemon.ready():
            return False
        say(f"{daemon.name} lives but does not answer: starting it again")
        stop(daemon)
    elif daemon.name == "munged" and daemon.ready():
        return False  # the machine's own; any munged with the machine's key serves
    start(daemon)
    return True


def start(daemon: Daemon) -> None:
    remedy = "read the log; `cluster.py down` and then `up` starts everything again"
    folder(LOGS, mode=0o1777)
    folder(daemon.pid_file.parent, mode=0o1777)
    with open(LOGS / f"{daemon.name}.log", "ab") as sink:
        try:
            process = subprocess.Popen(
                daemon.argv,
                env={**CLEAN_ENVIRONMENT, **daemon.env},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
                **identity(daemon.user if daemon.user != "root" else None),
            )
        except OSError as error:
            raise ClusterError(f"starting {daemon.name}", why=str(error), remedy=remedy) from error
    daemon.pid_file.write_text(f"{process.pid}\n")

    def serves_or_died() -> bool:
        if process.poll() is not None:
            raise ClusterError(
                f"starting {daemon.name}",
                why=f"it ended at once with status {process.returncode}",
                log=daemon.log,
                remedy=remedy,
            )
        return daemon.ready()

    wait_until(
        serves_or_died,
        step=f"starting {daemon.name}",
        timeout_s=daemon.timeout_s,
        log=daemon.log,
        remedy=remedy,
    )


def stop(daemon: Daemon) -> bool:
    """Stop a daemon that we started, politely first; True when there was one."""
    pid = daemon.pid
    if pid is None:
        daemon.pid_file.unlink(missing_ok=True)
        return False
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while daemon.pid is not None:
        if time.monotonic() > deadline:
            say(f"{daemon.name} did not stop in {STOP_TIMEOUT_S:.0f} s: killing it")
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + STOP_TIMEOUT_S
        time.sleep(0.05)
    daemon.pid_file.unlink(missing_ok=True)
    return True
