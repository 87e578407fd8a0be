"""Serving a model: what is asked of it, the backends that answer, the record of all of it.

Public: `serve_run` (loop), `Served`, `ServingProgress`, `WarmedUp` (outcome), `Backend`,
`backend_class`, `backend_names` (backend), `Request`, `make_requests` (requests). Only what is
asked for is imported: torch comes with the first name that needs it.
"""

from typing import TYPE_CHECKING

from llem._lazy import lazy
from llem.serving.outcome import Served, ServingProgress, WarmedUp

if TYPE_CHECKING:
    from llem.serving.backend import Backend, backend_class, backend_names
    from llem.serving.loop import serve_run
    from llem.serving.requests import Request, make_requests

__all__ = [
    "Backend",
    "Request",
    "Served",
    "ServingProgress",
    "WarmedUp",
    "backend_class",
    "backend_names",
    "make_requests",
    "serve_run",
]

_LAZY = {
    "Backend": "backend",
    "Request": "requests",
    "backend_class": "backend",
    "backend_names": "backend",
    "make_requests": "requests",
    "serve_run": "loop",
}

__getattr__ = lazy(__name__, _LAZY)
