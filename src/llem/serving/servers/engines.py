"""vLLM and TensorRT-LLM: their own servers, started in the job with what the options ask for.

Each has an image of its own (docs/studies.md), whose programs these are. Their forward passes are
their own, and tokens are recorded as they arrive, as of any server with the OpenAI interface.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from llem.campaign import Serving
from llem.errors import Fault, InputError, UnavailableError
from llem.records import ENGINE
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import Request
from llem.serving.servers.arguments import (
    ARGUMENTS,
    TENSORRT_LLM,
    VLLM,
    VLLM_FACTS,
    Argument,
    engine_arguments,
    tensorrt_command,
    tensorrt_settings,
    vllm_command,
    vllm_effective,
)
from llem.serving.servers.engine_steps import EngineSteps
from llem.serving.servers.openai import MOST_UNDER_WAY, OpenAIBackend
from llem.serving.servers.server import POLL_S

# Weights are read from disk, and graphs are captured.
READY_S = 1800.0
# A step is written down about when its tokens are sent.
LAST_STEP_S = 0.05
# The program that is started where it is not on the path.
PROGRAM = "LLEM_VLLM"
ATTENTION = re.compile(r"Using (?:AttentionBackendEnum\.)?(\w+) (?:attention )?backend")
# vLLM 0.32, vllm/v1/worker/gpu_model_runner.py: the whole engine ends with this.
NO_SEED = (
    "a request's own seed ends vLLM on a CPU where a prompt is read in parts (CPU Generator does "
    "not use offset): tokens are drawn by the server's seed, in the order of its steps"
)
# Where a step, which has no number yet, says how many tokens it made.
MADE = (ENGINE.names or ()).index("tokens_out") - 1


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
        if self.found() is None:
            raise UnavailableError(
                f"backend {run.deployment.backend} needs {self.package}: there is no program "
                f"{self.program} here",
                remedy="give the backend an image of its own: site.container.images",
            )
        return shlex.join(self.words())

    def found(self) -> str | None:
        """Where the program is."""
        return shutil.which(self.program)

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
    """`vllm serve`; see `llem.serving.backend.Backend`.

    The program of the environment variable LLEM_VLLM, else the `vllm` of the path. What it made of
    the options, and each step of its engine, it tells by a plugin (`engine_steps`).
    """

    program, package, table = "vllm", "vLLM", VLLM

    def __init__(self, run: Serving, replica: Replica) -> None:
        self._engine: EngineSteps | None = None
        super().__init__(run, replica)

    def found(self) -> str | None:
        return shutil.which(os.environ.get(PROGRAM) or self.program)

    def words(self) -> list[str]:
        asked = {**self.asked, ARGUMENTS: self.run.deployment.options.get(ARGUMENTS)}
        program, *words = vllm_command(asked, seed=self.run.seed)
        return [self.found() or program, *words]

    def load(self) -> None:
        super().load()
        assert self._engine is not None
        on_cpu = self._engine.configuration().get("device_config.device_type") == "cpu"
        if on_cpu and self.options.get("sample"):
            left_out = (*self.dialect.left_out, "seed")
            refused = (*self.dialect.refused, NO_SEED)
            self.dialect = replace(self.dialect, left_out=left_out, refused=refused)

    def environment(self) -> dict[str, str]:
        names = [argument.told for argument in VLLM.values() if argument.told]
        self._engine = EngineSteps([*names, *VLLM_FACTS])
        return {**super().environment(), **self._engine.environment()}

    def effective(self) -> dict[str, Any]:
        """What was asked for, overruled by what the engine told: that is what was served."""
        assert self._engine is not None
        told = self._engine.configuration()
        facts = {name: told[name] for name in VLLM_FACTS if told.get(name) is not None}
        # The attention of each layer is chosen in the workers, and only in their log.
        if used := ATTENTION.findall(self.server.all_words()):
            facts["attention_backend"] = used[-1]
        if not told:
            facts["problem"] = "vLLM did not tell its configuration"
        found = {**super().effective(), **vllm_effective(told)}
        return {**found, "engine": facts, "versions": self._engine.versions}

    def serve(self, requests: Sequence[Request], log: Log) -> None:
        assert self._engine is not None
        # Those of the warm-up and of what came before.
        self._engine.steps()
        try:
            super().serve(requests, log)
        finally:
            self._record_steps(log)

    def _record_steps(self, log: Log) -> None:
        assert self._engine is not None
        if not self.replica.lead or log.warmup:
            return
        steps = self._engine.steps()
        until = time.monotonic() + LAST_STEP_S
        while sum(int(step[MADE]) for step in steps) < log.tokens_out and time.monotonic() < until:
            time.sleep(POLL_S / 50)
            steps += self._engine.steps()
        log.engine_steps(steps)
        if self._engine.problem or not steps:
            log.event("engine", self._engine.problem or "the engine told no steps")

    def close(self) -> None:
        super().close()
        if self._engine is not None:
            self._engine.close()


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
