"""What serves: backends behind one protocol, found by name among the installed entry points.

Another package adds one in its own pyproject.toml:

    [project.entry-points."llem.backends"]
    mine = "my_package:MyBackend"
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from llem.campaign import Serving
from llem.campaign.options import BACKENDS, backends_of_others
from llem.errors import Fault, InputError, LlemError, UnavailableError, did_you_mean
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import Request, Tokenizer

# llem's own, which need no installed metadata.
OWN = {
    "transformers": "llem.serving.generating.backend:TransformersBackend",
    "openai": "llem.serving.servers.openai:OpenAIBackend",
    "vllm": "llem.serving.servers.engines:VllmBackend",
    "tensorrt-llm": "llem.serving.servers.engines:TensorRTBackend",
}


class Backend(Protocol):
    """One replica of a deployment, on the ranks of `replica`.

    `sees_forwards` says whether it records its forward passes, or tokens as they come. One whose
    model is in other processes has `memory()` too, which tells their peaks as `PeakMemory` does,
    and a function `leave`, which is set before loading and says whether to give that up. A class of
    another package tells its options as well: `options`, of `llem.campaign.options.Option`.
    """

    sees_forwards: bool

    def __init__(self, run: Serving, replica: Replica) -> None:
        """Raises InputError or UnavailableError where the options cannot be had here: before
        anything is loaded."""

    @staticmethod
    def prepare(run: Serving) -> None:
        """Import what serving takes, before anything is measured. What fails here is not told: it
        fails again when the run begins."""

    def load(self) -> None:
        """Load the model. Raises LlemError."""

    def tokenizer(self) -> Tokenizer:
        """What makes token ids of a text. Raises LlemError."""

    def effective(self) -> dict[str, Any]:
        """The options as they really are, by the backend's own word, after loading."""

    def warmup_requests(self, requests: Sequence[Request]) -> Sequence[Request]:
        """Those of the `requests` that make one round of the warm-up."""

    def serve(self, requests: Sequence[Request], log: Log) -> None:
        """Serve all of them, as they arrive after `log.t0_ns`; leave where `log` says so."""

    def close(self) -> None:
        """Give everything back; safe to call at any time, and twice."""


def backend_names() -> list[str]:
    """All backends that are to be had by name, sorted."""
    return sorted(BACKENDS)


def backend_class(name: str) -> type[Backend]:
    """The class of a backend. Raises InputError for a name that nothing has, UnavailableError
    where what it names cannot be imported."""
    target = OWN.get(name)
    if target is None and (point := backends_of_others().get(name)) is not None:
        target = point.value
    if target is None:
        known = backend_names()
        hint = did_you_mean(name, known) or f"there are: {', '.join(known)}"
        raise InputError("backend", [Fault("backend", f"there is no backend {name!r}", hint)])
    module, _, attribute = target.partition(":")
    try:
        found: type[Backend] = getattr(import_module(module), attribute)
    except LlemError:
        raise
    except (ImportError, AttributeError) as error:
        raise UnavailableError(f"backend {name}: {target} cannot be imported: {error}") from error
    return found
