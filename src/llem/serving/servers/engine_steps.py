"""What vLLM's engine tells of itself: the configuration it resolved, and each of its steps.

A small folder with `vllm_logger` and its entry point goes in front of the server's path, so that
vLLM has it whether or not llem is installed beside it; the file that it writes is read here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PLUGIN = "llem_engine_steps"
ENTRY = f"[vllm.stat_logger_plugins]\n{PLUGIN} = {PLUGIN}:EngineSteps\n"
# A socket's path has at most 107 characters, of which its name, a UUID, takes 37.
MOST_SOCKET_FOLDER = 70
# A row of the record's /engine (llem.records.schema.ENGINE) without its number.
Step = tuple[int | float, ...]


class EngineSteps:
    """Give the server the `environment`, then ask; `close` removes what was written."""

    def __init__(self, told: Sequence[str]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="llem-engine-"))
        self._file = self._folder / "steps"
        self._told = list(told)
        self._read = 0
        self._early: list[Step] = []
        self._configuration: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.problem = ""
        shutil.copyfile(Path(__file__).with_name("vllm_logger.py"), self._folder / f"{PLUGIN}.py")
        info = self._folder / f"{PLUGIN}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLUGIN}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(ENTRY)

    def environment(self) -> dict[str, str]:
        """What the server needs in its environment, beside what this process has."""
        path = os.environ.get("PYTHONPATH", "")
        found = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(self._folder), path))),
            "LLEM_ENGINE_FILE": str(self._file),
            "LLEM_ENGINE_TOLD": json.dumps(self._told),
        }
        # vLLM leaves its sockets behind, here instead of in /tmp: what a path of one may have.
        if len(str(self._folder)) < MOST_SOCKET_FOLDER:
            found["VLLM_RPC_BASE_PATH"] = str(self._folder)
        # Where the user names the plugins that vLLM may load, this is one of them.
        if (allowed := os.environ.get("VLLM_PLUGINS")) is not None:
            found["VLLM_PLUGINS"] = ",".join(filter(None, (allowed, PLUGIN)))
        return found

    def configuration(self) -> dict[str, Any]:
        """By the dotted names that were asked for; empty where the server told nothing."""
        if not self._configuration:
            self._early += self._more()
        return self._configuration

    def steps(self) -> list[Step]:
        """The steps since the last call. `problem` says why there are no more."""
        found, self._early = self._early + self._more(), []
        return found

    def _more(self) -> list[Step]:
        try:
            with self._file.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except OSError:
            return []
        # The last line may not be whole yet.
        data = data[: data.rfind(b"\n") + 1]
        self._read += len(data)
        found: list[Step] = []
        for line in data.splitlines():
            if line.startswith(b"{"):
                self._hear(json.loads(line))
                continue
            *whole, used = line.split()
            found.append((*map(int, whole), float(used)))
        return found

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hear(self, said: dict[str, Any]) -> None:
        self.problem = said.get("problem", self.problem)
        # Of several engines of one server (data parallel) they are the same.
        self._configuration = self._configuration or said.get("told", {})
        self.versions = self.versions or said.get("versions", {})
