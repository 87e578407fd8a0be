"""The process of one tracker: it reads lines from rank 0 and does as they say, until they end.

    python -m llem.training.trackers.child '{"tensorboard": {}}' FOLDER

Never imports torch. It ends with its input, which is closed when rank 0 leaves or dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

# A tracker that outlives its rank, which could not wait for it, may take so long to end.
ORPHAN_S = 60.0
WATCH_S = 2.0


def main() -> int:
    # The job's signals are for the ranks; what they then tell is to be brought away.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    # What libraries print belongs into the log.
    os.dup2(2, 1)
    threading.Thread(target=_end_if_orphaned, args=(os.getppid(),), daemon=True).start()

    def answer(**values: Any) -> None:
        try:
            print(json.dumps(values), file=answers, flush=True)
        except OSError:
            return

    try:
        spec, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
        tracker = load(spec, folder=folder, say=lambda text: answer(say=text))
        _follow(tracker, answer)
    except BaseException as error:
        traceback.print_exc()
        answer(error=f"{type(error).__name__}: {error}")
        return 1
    return 0


def _follow(tracker: Any, answer: Callable[..., None]) -> None:
    run_id = None
    for number, line in enumerate(sys.stdin):
        message = json.loads(line)
        method, values = message["do"], message["values"]
        if method == "on_start":
            run_id = message["run_id"]
            arguments = [values["run"], values["meta"]]
        else:
            arguments = [values]
        # Of a run whose start was dropped nothing can be told.
        if message["run_id"] == run_id and hasattr(tracker, method):
            getattr(tracker, method)(*arguments)
        answer(done=number)
    if hasattr(tracker, "close"):
        tracker.close()


def load(spec: Mapping[str, Any], *, folder: Path, say: Callable[[str], None]) -> Any:
    """The tracker that a campaign names. Raises ImportError where its package is absent."""
    if "class" in spec:
        # As for a model of the user's own: the campaign's folder, and the code that went with it.
        sys.path[:0] = [os.getcwd(), os.path.join(os.getcwd(), "code")]
        module, _, name = spec["class"].partition(":")
        return getattr(import_module(module), name)(**spec.get("arguments", {}))
    kind, options = next(iter(spec.items()))
    adapter = import_module(f"llem.training.trackers.{kind}")
    return adapter.Tracker(folder=folder / kind, say=say, **options)


def _end_if_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    time.sleep(ORPHAN_S)
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
