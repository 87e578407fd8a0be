"""Why a run did not complete: from the scheduler, end records and a log, to a cause with advice.

Pure: what is read here was gathered elsewhere. The names are those of the end records' `cause`,
and some that only the scheduler or the log can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from llem.cluster.scheduler.facts import ElementState, first_node

# What another try needs: nothing; other nodes; less memory; the user first; or no try at all.
Retry = Literal["again", "elsewhere", "smaller", "fix", "never"]


@dataclass(frozen=True)
class Cause:
    """Why a run (or a whole element) came to an end that is not completion."""

    name: str
    node: str
    text: str
    advice: str
    retry: Retry


# Cause -> (what another try needs, what a person can do about it).
CAUSES: Final[Mapping[str, tuple[Retry, str]]] = {
    "out-of-memory": (
        "smaller",
        "more memory for the job (memory_per_node) or a smaller layout.micro_batch",
    ),
    "node-failure": ("elsewhere", "tell the administrators; another try goes to other nodes"),
    "boot-failure": ("elsewhere", "the node did not start: try again; tell the administrators"),
    "time-limit": ("again", "goes on from the last checkpoint; raise limits.time if it never ends"),
    "preempted": ("again", "goes on from the last checkpoint"),
    "asked-to-stop": ("again", "goes on from the last checkpoint"),
    "signal": ("again", "goes on from the last checkpoint"),
    "superseded": ("again", "a later attempt took its place: nothing to do"),
    "starter-gone": ("again", "the process that started it was ended: start it again"),
    "cancelled": ("again", "was cancelled: what is missing goes on from the last checkpoint"),
    "container-missing": (
        "fix",
        "`llem image verify` the image on a node; see container.image, modules and /dev/fuse",
    ),
    "module-failed": ("fix", "see `modules` of the site: `module avail` on a node tells the names"),
    "program-missing": (
        "fix",
        "nodes do not have this llem or Python: build the image anew, or use a shared folder",
    ),
    "disk-full": ("fix", "free space or raise the quota where the campaign folder lies"),
    "rendezvous": (
        "elsewhere",
        "ranks did not meet: see environment (NCCL_SOCKET_IFNAME), `llem doctor --job`",
    ),
    "diverged": ("never", "counts as a result; a lower training.learning_rate is another campaign"),
    "refused": ("fix", "data, model or layout do not fit: read its log"),
    "exception": ("fix", "read its log: `llem logs` shows the whole of it"),
    "killed": ("again", "ended without a word: look at the node, and at memory"),
    "unknown": ("again", "read its log"),
}

# What a rank says that leaves in order; a reason may go on after these words.
STOP_REASONS: Final = {
    "asked-to-stop": "asked to stop (jobs/stop)",
    "time-limit": "the job's time limit is near",
    "preempted": "a job of higher priority takes the nodes",
    "signal": "signal ",
    "superseded": "a later attempt at this run has begun",
    "starter-gone": "the process that started this run is gone",
}

# SLURM's final state -> cause, where the state alone tells. FAILED and COMPLETED tell nothing.
OF_STATE: Final = {
    "OUT_OF_MEMORY": "out-of-memory",
    "NODE_FAIL": "node-failure",
    "BOOT_FAIL": "boot-failure",
    "LAUNCH_FAILED": "boot-failure",
    "RECONFIG_FAIL": "boot-failure",
    "TIMEOUT": "time-limit",
    "DEADLINE": "time-limit",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
}
# Lines of a job's log. The scheduler's own words come first: they explain what ranks say after.
# A group `node` names the node.
LOG_LINES: Final[Mapping[str, tuple[str, ...]]] = {
    "node-failure": (r"Node failure on (?P<node>[\w.-]+)", r"DUE TO NODE FAILURE"),
    "preempted": (r"DUE TO PREEMPTION",),
    "time-limit": (r"DUE TO TIME LIMIT",),
    "out-of-memory": (
        r"oom[-_ ]?kill",
        r"exceeded (?:job |step )?memory limit",
        r"OutOfMemoryError",
        r"(?:CUDA|HIP) out of memory",
        r"\bOut Of Memory\b",
        r"^MemoryError",
        r"can(?:not|'t) allocate memory",
    ),
    "disk-full": (r"No space left on device", r"Disk quota exceeded"),
    "module-failed": (
        r"module: command not found",
        r"Lmod has detected the following error",
        r"Unable to locate a modulefile",
        r"module\(s\) are unknown",
        r"ModuleCmd_Load",
        r"^ERROR: .*modulefile",
    ),
    "container-missing": (
        r"could not open image",
        r"image format not recognized",
        r"\b(?:apptainer|singularity): (?:command not found|No such file)",
        r"fuse: device not found",
        r"/dev/fuse",
        r"FATAL: .*(?:image|container|mount|squashfuse)",
    ),
    "program-missing": (
        r"No module named '?(?:llem|torch|accelerate|deepspeed|submitit)\b",
        r"execve\(\): \S*python\S*: No such file",
        r"python\S*: (?:command not found|No such file)",
    ),
    "rendezvous": (
        r"RendezvousError",
        r"Dist(?:Network|Store)Error",
        r"did not (?:connect to|meet the others)",
        r"does not reach \S+:\d+ within",
        r"nccl(?:System|Remote|Internal)Error",
        r"NCCL error",
        r"connectFullMesh",
        r"Address already in use",
    ),
}
_LOG_LINES: Final = tuple(
    (name, re.compile("|".join(patterns), re.IGNORECASE | re.MULTILINE))
    for name, patterns in LOG_LINES.items()
)
_RAISED: Final = re.compile(
    r"^((?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*)$", re.MULTILINE
)
_BAD_TASK: Final = re.compile(
    r"^srun: error: (?P<node>[\w.-]+): tasks? [\d,-]+: (?!Terminated)", re.MULTILINE
)
# A log is appended to when a job is requeued: what was said before belongs to another try.
_REQUEUED: Final = "DUE TO JOB REQUEUE"
TEXT_LENGTH: Final = 200
# End records of ranks that were asked to leave, or did: the scheduler may know why.
VAGUE: Final = frozenset({"", "signal", "asked-to-stop", "exception", "killed", "rendezvous"})


def cause(name: str, *, node: str = "", text: str = "") -> Cause:
    """The cause of that name; one that is not in the table keeps it, with general advice."""
    retry, advice = CAUSES.get(name, CAUSES["unknown"])
    return Cause(name, node, " ".join(text.split())[:TEXT_LENGTH], advice, retry)


def diagnose(
    *, end: Mapping[str, Any], element: ElementState | None, log: str, attempted: bool = True
) -> Cause:
    """The cause of a run that nothing works on any more and that did not complete.

    `end` is its last end record (empty: killed, or never begun), `element` the scheduler's last
    word on its element (None: forgotten), `log` the part of the log that is its own, `attempted`
    whether it ever began.
    """
    status, reason = str(end.get("status") or ""), str(end.get("reason") or "")
    named = str(end.get("cause") or "")
    if status == "diverged":
        return cause("diverged", node=_node(end, element, ""), text=reason)
    told = _of_scheduler(element)
    seen = recognise(log)
    node = _node(end, element, log)
    if named not in VAGUE:
        return cause(named, node=node, text=reason)
    if told and told != "cancelled":
        return cause(told, node=node, text=_scheduler_text(element))
    if seen is not None and seen[0] != "exception" and (told or status != "interrupted"):
        return cause(seen[0], node=seen[1] or node, text=seen[2])
    if told and (not end or status == "interrupted"):
        return cause(told, node=node, text=_scheduler_text(element))
    if named:
        return cause(named, node=node, text=reason)
    if status == "interrupted":
        return cause(cause_of_reason(reason), node=node, text=reason)
    if status == "failed":
        line = recognise(reason)
        return cause(line[0] if line else "exception", node=node, text=reason)
    if seen is not None:
        return cause(seen[0], node=seen[1] or node, text=seen[2])
    if element is not None and element.final:
        code = f"exit code {element.exit_code}" if element.exit_code else element.reason
        text = f"{element.state}, {code}" if code else element.state
        bad = element.exit_code.partition(":")
        name = "killed" if attempted or (bad[2] or "0") != "0" else "unknown"
        return cause(name, node=node, text=text)
    return cause("killed", node=node, text="neither ended nor known to the scheduler any more")


def cause_of_reason(reason: str) -> str:
    """The cause behind the words of a rank that left in order."""
    for cause, words in STOP_REASONS.items():
        if reason.startswith(words):
            return cause
    return "signal"


def recognise(log: str) -> tuple[str, str, str] | None:
    """(cause, node, line) that a part of a log tells, or None."""
    text = log.rpartition(_REQUEUED)[2]
    for name, pattern in _LOG_LINES:
        if found := pattern.search(text):
            node = found.groupdict().get("node") or ""
            return name, node, _line(text, found.start())
    raised = _RAISED.findall(text)
    return ("exception", "", raised[-1]) if raised else None


def _of_scheduler(element: ElementState | None) -> str:
    """What the element's state tells, or a step's: FAILED may hide one out of memory."""
    if element is None or not element.final:
        return ""
    if any(step.state == "OUT_OF_MEMORY" for step in element.steps):
        return "out-of-memory"
    if (name := OF_STATE.get(element.state, "")) and name != "cancelled":
        return name
    lost = [OF_STATE[s.state] for s in element.steps if s.state in ("NODE_FAIL", "TIMEOUT")]
    return lost[0] if lost else OF_STATE.get(element.state, "")


def _scheduler_text(element: ElementState | None) -> str:
    if element is None:
        return ""
    words = [f"SLURM: {element.state}"]
    words += [f"step {s.name} {s.state}" for s in element.steps if s.state in OF_STATE][:2]
    return ", ".join(words)


def _node(end: Mapping[str, Any], element: ElementState | None, log: str) -> str:
    """The node that it happened on, as far as anything tells: the log's first bad task, else."""
    if found := _BAD_TASK.search(log.rpartition(_REQUEUED)[2]):
        return found["node"]
    if end.get("node"):
        return str(end["node"])
    hosts = end.get("hosts")
    if isinstance(hosts, list) and len(hosts) == 1:
        return str(hosts[0])
    if element is not None and element.nodes:
        alone = not re.search(r"[\[,]", element.nodes)
        return first_node(element.nodes) if alone else element.nodes
    return ""


def _line(text: str, at: int) -> str:
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    return text[start : end if end >= 0 else len(text)].strip()
