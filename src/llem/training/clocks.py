"""How far this node's wall clock is off rank 0's, measured over the network.

Ranks of one node share a monotonic clock; between nodes a record's times can be compared by their
wall clocks only, which are as good as the site's time service. One rank of each other node asks
rank 0 for its time, some times in a row: the fastest answer bounds the error by half of its round
trip (Cristian 1989), tens of microseconds on a cluster's network.
"""

from __future__ import annotations

import math
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llem.records import host_meta
from llem.training.world import World

if TYPE_CHECKING:
    from llem.training.recording import Recording

ROUNDS = 16
TIMEOUT_S = 5.0
_TIME = struct.Struct("<q")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Rank 0's wall clock minus this node's, and the round trip; NaN with a reason, or without
    one where there is nothing to compare (rank 0's own node; not the node's first rank)."""

    offset_ns: float = math.nan
    rtt_ns: float = math.nan
    reason: str = ""


def tie_clock(record: Recording, world: World) -> None:
    """Tie this node's clock to rank 0's in a rank's record, or say there why it is not."""
    found = compare_clocks(world)
    if math.isfinite(found.offset_ns):
        record.stamp_clock(peer_offset_ns=found.offset_ns, rtt_ns=found.rtt_ns)
    elif found.reason:
        record.event("clock", f"not compared with rank 0's: {found.reason}")


def compare_clocks(world: World) -> Compared:
    """Compare; called by every rank of `world`. Never raises for a network that does not answer."""
    boots = world.gather_text(str(host_meta()["boot_id"]))
    if len(set(boots)) < 2:
        return Compared()
    others = sorted({boots.index(boot) for boot in boots} - {0})
    listener = None
    if world.main:
        with suppress(OSError):  # no port is to be had: the others are told that nobody listens
            listener = socket.create_server(("", 0), backlog=len(others))
    port = world.first(lambda: listener.getsockname()[1] if listener is not None else 0)
    if listener is not None:
        threading.Thread(target=_tell, args=(listener, len(others)), daemon=True).start()
    found = _ask(os.environ["MASTER_ADDR"], port) if world.rank in others else Compared()
    # A barrier: rank 0 listens until all have asked.
    world.gather_text(None)
    if listener is not None:
        listener.close()
    return found


def _tell(listener: socket.socket, clients: int) -> None:
    """Answer every byte with the time, for one client after the other."""
    listener.settimeout(TIMEOUT_S)
    with suppress(OSError):
        for _ in range(clients):
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(TIMEOUT_S)
                while connection.recv(1):
                    connection.sendall(_TIME.pack(time.time_ns()))


def _ask(host: str, port: int) -> Compared:
    best = Compared(reason=f"{host}:{port} told no time")
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as to:
            to.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(ROUNDS):
                before_ns, began_ns = time.time_ns(), time.monotonic_ns()
                to.sendall(b"?")
                data = b""
                while len(data) < _TIME.size:
                    part = to.recv(_TIME.size - len(data))
                    if not part:
                        return best
                    data += part
                rtt_ns = time.monotonic_ns() - began_ns
                if not rtt_ns >= best.rtt_ns:
                    offset_ns = _TIME.unpack(data)[0] - (before_ns + rtt_ns // 2)
                    best = Compared(offset_ns=float(offset_ns), rtt_ns=float(rtt_ns))
    except OSError as error:
        if math.isnan(best.rtt_ns):
            return Compared(reason=f"{host}:{port}: {error.strerror or error}")
    return best
