"""What `llem doctor --job` runs inside the image, on each node: facts, written as JSON.

    python -m llem.cluster.doctor.probe --manifest site.json [--sampler]

The working directory is the doctor's own folder, on the campaigns' file system; the login node
waits there at the same time. A rank tells how it is bound, and meets the others; a sampler, one
to a node, tells devices, file systems and the clock.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llem._version import __version__
from llem.cluster.disk.files import write_json
from llem.cluster.doctor.login import installed, meters
from llem.cluster.doctor.place import probe, room
from llem.cluster.job.environment import node_name

PACKAGES = ("torch", "accelerate", "deepspeed", "h5py", "numpy", "submitit")
PONG_S = 15.0
MEET_S = 30.0
TRIPS = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="llem.cluster.doctor.probe")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--sampler", action="store_true", help="be the node's sampler, not a rank")
    args = parser.parse_args(argv)
    asked = json.loads(args.manifest.read_text(encoding="utf-8"))
    os.environ.update(asked["environment"])
    node, task = node_name(), os.environ.get("SLURM_PROCID", "0")
    if args.sampler:
        write_json(Path(f"node-{node}.json"), {"node": node, **node_facts(asked)})
        return 0
    facts = {"node": node, "task": int(task), **rank_facts()}
    # Where no step of its own is had for the sampler, a node's first rank does its work.
    if not asked["overlap"] and os.environ.get("SLURM_LOCALID", "0") == "0":
        write_json(Path(f"node-{node}.json"), {"node": node, **node_facts(asked)})
    write_json(Path(f"rank-{task}.json"), facts)
    return 0


def node_facts(asked: dict[str, Any]) -> dict[str, Any]:
    """What is told once for a node."""
    clock = told(lambda: meet_login(Path.cwd()))
    devices = told(lambda: dict(zip(("devices", "reasons"), meters(), strict=True)))
    return {
        "llem": __version__,
        "python": sys.version.split()[0],
        "image": os.environ.get("APPTAINER_NAME") or os.environ.get("SINGULARITY_NAME", ""),
        "packages": {name: installed(name) for name in PACKAGES},
        # The doctor's own folder goes away: what was tried is the one that it lies in.
        "place": told(lambda: probe(Path.cwd()) | {"path": str(Path.cwd().parent)}),
        "home": room(Path.home()),
        "temporary": room(Path(tempfile.gettempdir())),
        "lock": lock_of_login(Path("lock")),
        "clock": clock,
        "meters": devices,
        "torch": told(torch_facts) if asked["gpus"] else None,
    }


def rank_facts() -> dict[str, Any]:
    """What each rank tells: its CPUs, and whether it meets the others where ranks will."""
    ranks = int(os.environ.get("SLURM_NTASKS", "1"))
    return {
        "cpus": sorted(os.sched_getaffinity(0)),
        "omp_threads": os.environ.get("OMP_NUM_THREADS"),
        "meeting": told(lambda: meet(ranks)) if ranks > 1 else None,
    }


def told(ask: Callable[[], Any]) -> Any:
    """What `ask` returns; what it raises, as `{"error": ...}`: no fact costs the others."""
    try:
        return ask()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def torch_facts() -> dict[str, Any]:
    """What torch sees of the accelerators."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return {
        "count": count,
        "names": sorted({torch.cuda.get_device_name(i) for i in range(count)}),
        "runtime": f"CUDA {torch.version.cuda}"
        if torch.version.cuda
        else f"ROCm {torch.version.hip}",
    }


def lock_of_login(path: Path) -> str:
    """`shared` where the lock that the login node holds is seen from here, else `local`."""
    try:
        with open(path, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "shared"
    except OSError as error:
        return f"refused: {error}"
    return "local"


def meet_login(folder: Path) -> dict[str, float]:
    """Stamps of one exchange with the login node through the shared folder, wall seconds.

    `ping` and `got` by this clock, `seen` and `sent` by the login node's. Raises TimeoutError.
    """
    node = node_name()
    ping = time.time()
    write_json(folder / f"ping-{node}.json", {"ping": ping})
    answer = folder / f"pong-{node}.json"
    deadline = time.monotonic() + PONG_S
    while time.monotonic() < deadline:
        try:
            text = answer.read_text()
        except FileNotFoundError:
            time.sleep(0.02)
            continue
        return {"ping": ping, "got": time.time(), **json.loads(text)}
    raise TimeoutError(f"the login node did not answer within {PONG_S:.0f} s")


def meet(ranks: int) -> dict[str, Any]:
    """Rank 0 listens on the job's port, and every other connects as ranks of a training do."""
    os.environ.setdefault("SUBMITIT_EXECUTOR", "slurm")
    from submitit import JobEnvironment

    master = JobEnvironment().hostnames[0]
    port = int(os.environ["MASTER_PORT"])
    rank = int(os.environ["SLURM_PROCID"])
    if rank == 0:
        return {"host": master, "port": port, "met": serve(port, ranks - 1)}
    start = time.monotonic()
    while True:
        try:
            with socket.create_connection((master, port), timeout=MEET_S) as link:
                address = link.getpeername()[0]
                return {"host": master, "port": port, "address": address, "rtt_s": trips(link)}
        except OSError as error:
            # Rank 0 may not listen yet.
            if time.monotonic() - start > MEET_S:
                raise TimeoutError(f"{master}:{port}: {error}") from None
            time.sleep(0.1)


def serve(port: int, others: int) -> int:
    """Answer `others` peers one after the other; returns how many came in time."""
    met = 0
    with socket.create_server(("", port), backlog=max(1, others)) as server:
        deadline = time.monotonic() + MEET_S
        while met < others and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            try:
                link, _ = server.accept()
            except TimeoutError:
                break
            with link:
                link.settimeout(left)
                for _ in range(TRIPS):
                    link.sendall(_exactly(link, 8))
            met += 1
    return met


def trips(link: socket.socket) -> float:
    """The shortest of some round trips, seconds."""
    shortest = float("inf")
    for number in range(TRIPS):
        start = time.perf_counter()
        link.sendall(struct.pack("!q", number))
        _exactly(link, 8)
        shortest = min(shortest, time.perf_counter() - start)
    return shortest


def _exactly(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = link.recv(count - len(data))
        if not part:
            raise ConnectionError("the peer hung up")
        data += part
    return data


if __name__ == "__main__":
    sys.exit(main())
