"""What processes that llem starts have in common."""

from __future__ import annotations

import os
import socket
import threading
from multiprocessing import parent_process


def end_with_parent() -> None:
    """A command that was killed leaves no worker behind, which would wait for work for ever."""
    parent = parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def free_port() -> int:
    """A port of this host that nothing listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
