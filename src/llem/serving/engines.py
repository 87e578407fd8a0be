"""vLLM and TensorRT-LLM: their own servers, started in the job with what the options ask for.

Each has an image of its own (docs/studies.md), whose programs these are. Their forward passes are
their own, and tokens are recorded as they arrive, as of any server with the OpenAI interface.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llem.errors import Fault, InputError, UnavailableError
from llem.serving.arguments import (
    TENSORRT_LLM,
    VLLM,
    Argument,
    engine_arguments,
    tensorrt_command,
    tensorrt_settings,
    vllm_command,
)
from llem.serving.openai_backend import MOST_UNDER_WAY, OpenAIBackend
from llem.serving.requests import Request

# Weights are read from disk, and graphs are captured.
READY_S = 1800.0


class _Engine(OpenAIBackend, ABC):
    """A server whose command llem makes; `batch_size` is the engine's own limit."""

    program = ""
    package = ""
    table: Mapping[str, Argument]

    def command(self) -> str:
        run = self.run
        faults = []
        if run.deployment.model.path is None:
            text = f"{self.package} serves weights that are on disk"
            faults.append(Fault(f"models.{run.deployment.model.name}", text, "give `path`"))
        if run.deployment.layout.nodes > 1 and self.replica.count == 1:
            text = f"llem starts {self.package} on one node"
            faults.append(Fault("layout.nodes", text, "a replica for each node, or fewer GPUs"))
        if faults:
            raise InputError(f"run {run.run_id}", faults)
        if shutil.which(self.program) is None:
            raise UnavailableError(
                f"backend {run.deployment.backend} needs {self.package}: there is no program "
                f"{self.program} here",
                remedy="give the backend an image of its own: site.container.images",
            )
        return shlex.join(self.words())

    @abstractmethod
    def words(self) -> list[str]:
        """What starts the server, word by word; {path} and {port} are filled in later."""

    @property
    def asked(self) -> dict[str, Any]:
        """What the engine is told: what was asked for, not what llem takes for its defaults."""
        asked = self.run.deployment.options
        return {name: value for name, value in asked.items() if name in self.table}

    @property
    def ready_s(self) -> float:
        return READY_S

    def effective(self) -> dict[str, Any]:
        given = engine_arguments(self.table, self.asked)
        return {**super().effective(), "engine_arguments": given}

    def _together(self, requests: Sequence[Request]) -> int:
        """All that have arrived: which of them run together is the engine's to choose."""
        return min(len(requests), MOST_UNDER_WAY)


class VllmBackend(_Engine):
    """`vllm serve`; see `llem.serving.backend.Backend`."""

    program, package, table = "vllm", "vLLM", VLLM

    def words(self) -> list[str]:
        return vllm_command(self.asked, seed=self.run.seed)


class TensorRTBackend(_Engine):
    """`trtllm-serve`; its options are in a file, as only there it takes all of them."""

    program, package, table = "trtllm-serve", "TensorRT-LLM", TENSORRT_LLM
    _file: Path | None = None

    def words(self) -> list[str]:
        handle, name = tempfile.mkstemp(prefix="llem-trtllm-", suffix=".yaml")
        with os.fdopen(handle, "w") as stream:
            # JSON is YAML
            json.dump(tensorrt_settings(self.asked), stream)
        self._file = Path(name)
        return tensorrt_command(name)

    def close(self) -> None:
        super().close()
        if self._file is not None:
            self._file.unlink(missing_ok=True)
