"""A check, before anything heavy is imported, that every node reaches rank 0's.

Rank 0 listens on the port at which the ranks will meet; one rank of each other node connects, says
the word that all ranks of this job know, and is told `ok`. Otherwise the error names node, host
and port within a minute, and not a timeout of the training library ten minutes later.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from llem.errors import LlemError

TIMEOUT_S = 60.0
PAUSE_S = 0.2
# One connection's word and answer.
ANSWER_S = 5.0


class RendezvousError(LlemError):
    """A node does not reach the master, or the master's port is another's."""


def meet(
    *,
    node: str,
    nodes: int,
    node_index: int,
    host: str,
    port: int,
    word: str,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """Meet the other nodes; called by one rank of each. Raises RendezvousError, naming who."""
    if nodes < 2:
        return
    if node_index == 0:
        _await_others(node, nodes, port, word, timeout_s)
    else:
        _reach(node, node_index, host, port, word, timeout_s)


def _await_others(node: str, nodes: int, port: int, word: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    missing = set(range(1, nodes))
    try:
        listener = socket.create_server(("", port), backlog=nodes)
    except OSError as error:
        raise RendezvousError(
            f"{node} cannot listen on port {port}: {error.strerror or error}",
            remedy="another process has it; the next try takes the same: wait for it to end",
        ) from None
    with listener:
        while missing:
            left = deadline - time.monotonic()
            if left <= 0:
                numbers = ", ".join(map(str, sorted(missing)))
                raise RendezvousError(
                    f"node(s) {numbers} of the job's {nodes} did not connect to {node}:{port} "
                    f"within {timeout_s:g} s",
                    remedy="see the lines of those nodes in this log; is the port open to them?",
                )
            listener.settimeout(left)
            with suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(min(ANSWER_S, max(0.1, left)))
                    said = connection.makefile("r").readline().split()
                    if len(said) == 2 and said[0] == word and said[1].isdigit():
                        connection.sendall(b"ok\n")
                        missing.discard(int(said[1]))


def _reach(node: str, index: int, host: str, port: int, word: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        left = deadline - time.monotonic()
        try:
            with socket.create_connection(
                (host, port), timeout=max(0.1, min(left, ANSWER_S))
            ) as to:
                to.sendall(f"{word} {index}\n".encode())
                if to.makefile("r").readline() == "ok\n":
                    return
                said = "what listens there is not rank 0 of this job"
        except OSError as error:
            said = error.strerror or str(error)
        if time.monotonic() >= deadline:
            raise RendezvousError(
                f"node {node} does not reach {host}:{port} within {timeout_s:g} s: {said}",
                remedy=f"does {host} resolve on {node}, and is the port open between them?",
            )
        time.sleep(min(PAUSE_S, max(0.0, deadline - time.monotonic())))
