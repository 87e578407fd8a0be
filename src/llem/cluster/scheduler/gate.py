"""The one gate to other programs (the scheduler, Apptainer): argument lists, never a shell."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from llem.errors import ClusterError, UnavailableError

log = logging.getLogger("llem.cluster")


def run_program(
    args: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
    stdin: str = "",
    keep_open: Sequence[int] = (),
) -> str:
    """Run `args` to its end, with `stdin` on its standard input; return its standard output.

    It inherits the descriptors of `keep_open`.

    Raises UnavailableError where the program is not there, ClusterError where it fails or takes
    longer than `timeout_s`, with its own words.
    """
    log.debug("run %s", args)
    try:
        done = subprocess.run(
            list(args), cwd=cwd, env=env, timeout=timeout_s, check=False,
            input=stdin, pass_fds=keep_open, capture_output=True, text=True, errors="replace",
        )  # fmt: skip
    except FileNotFoundError:
        raise UnavailableError(
            f"{args[0]} is not on PATH", remedy="run this on a login node, or load its module"
        ) from None
    except OSError as error:
        raise UnavailableError(f"{args[0]} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{args[0]} did not answer within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip() or "no message"
        raise ClusterError(f"{args[0]} failed with status {done.returncode}: {words}")
    return done.stdout
