"""What the scheduler says of array elements: the words of squeue and sacct, read by pure functions.

Absent is not failed, an unknown state is unknown, and an exit code counts only with a final state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime

from llem.planning.limits import parse_limit_s

# SLURM state -> meaning. What is not listed is unknown, never failed.
STATES = {
    "PENDING": "queued",
    "CONFIGURING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_FED": "queued",
    "EXPEDITING": "queued",
    "SUSPENDED": "queued",
    "POWER_UP_NODE": "queued",
    "REQUEUE_HOLD": "held",
    "SPECIAL_EXIT": "held",
    "RESV_DEL_HOLD": "held",
    "RUNNING": "running",
    "COMPLETING": "running",
    "STAGE_OUT": "running",
    "SIGNALING": "running",
    "RESIZING": "running",
    "STOPPED": "running",
    "UPDATE_DB": "running",
    "COMPLETED": "ended",
    "FAILED": "ended",
    "CANCELLED": "ended",
    "TIMEOUT": "ended",
    "OUT_OF_MEMORY": "ended",
    "NODE_FAIL": "ended",
    "BOOT_FAIL": "ended",
    "LAUNCH_FAILED": "ended",
    "RECONFIG_FAIL": "ended",
    "DEADLINE": "ended",
    "PREEMPTED": "ended",
    "REVOKED": "ended",
}
ACTIVE = frozenset({"queued", "held", "running"})

# Why an element that waits will not start by itself: start of squeue's reason -> what to do.
STUCK = {
    "JobHeldUser": "`scontrol release` it",
    "JobHeldAdmin": "the administrators hold it: ask them",
    "JobHoldMaxRequeue": "it was requeued too often: read its log, then `scontrol release` it",
    "launch failed requeued held": "a node could not start it: `scontrol release` it",
    "DependencyNeverSatisfied": "what it waits for failed: cancel and `llem resubmit`",
    "BadConstraints": "no node can ever satisfy it: see partition, constraint and GPUs of the site",
    "PartitionNodeLimit": "it asks for more nodes than the partition gives to one job",
    "PartitionTimeLimit": "its time limit is above the partition's: lower limits.time of the site",
    "QOSMaxWallDurationPerJobLimit": "its time limit is above the QOS's: lower limits.time",
    "AssocGrpBillingMinutes": "the account has used up its time",
    "AssocGrpGRESMinutes": "the account has used up its time",
    "AssocGrpCPUMinutesLimit": "the account has used up its time",
    "AssociationJobLimit": "the account allows no more jobs now",
    "InvalidAccount": "the account does not exist here: see `account` of the site",
    "InvalidQOS": "the QOS does not exist here: see `qos` of the site",
    "ReqNodeNotAvail": "nodes are reserved or down, perhaps for maintenance: `sinfo -R` tells",
}

# squeue's fields in their order; the `:|` prints each whole, whatever its length.
SQUEUE_FIELDS = (
    "ArrayJobID", "ArrayTaskID", "State", "TimeUsed", "TimeLeft", "StartTime", "RestartCnt",
    "NodeList", "Reason",
)  # fmt: skip
SACCT_FIELDS = ("JobID", "State", "ExitCode", "NodeList", "Elapsed", "Start", "End", "Reason")


ENERGY_FIELDS = ("JobID", "ConsumedEnergyRaw")
# SLURM's words for "no value" of 32 and 64 bits, which sacct prints as numbers.
NO_VALUE = frozenset({2**32 - 2, 2**32 - 1, 2**64 - 2, 2**64 - 1})


@dataclass(frozen=True)
class Step:
    """A step of an element that accounting knows: `batch`, `extern` or a number."""

    name: str
    state: str
    exit_code: str
    nodes: str = ""


@dataclass(frozen=True)
class ElementState:
    """What the scheduler says of one array element; `index` None is a job without an array.

    `exit_code` is SLURM's `status:signal`, and empty unless the state is final. `nodes` is as
    SLURM writes it, `n[2-3]`. `started_s` and `ended_s` are seconds of the epoch.
    """

    job_id: str
    index: int | None
    state: str
    reason: str = ""
    nodes: str = ""
    exit_code: str = ""
    started_s: float | None = None
    ended_s: float | None = None
    elapsed_s: int | None = None
    left_s: int | None = None
    restarts: int = 0
    steps: tuple[Step, ...] = ()

    @property
    def meaning(self) -> str:
        return STATES.get(self.state, "unknown")

    @property
    def final(self) -> bool:
        return self.meaning == "ended"

    @property
    def stuck(self) -> str:
        """What to do about an element that waits and will not start by itself; else empty."""
        if self.meaning == "held":
            return "held: read its log, then `scontrol release` it"
        if self.meaning != "queued":
            return ""
        return next((todo for word, todo in STUCK.items() if self.reason.startswith(word)), "")


def parse_squeue(text: str) -> list[ElementState]:
    """Lines of squeue in `SQUEUE_FIELDS`; several indices in one (`4-7,9%2`) are told apart."""
    found = []
    for line in text.splitlines():
        parts = line.strip().split("|")
        if len(parts) < len(SQUEUE_FIELDS) or not parts[0].isdigit():
            continue
        job, indices, state, used, left, start, restarts, nodes, *reason = parts
        common = ElementState(
            job_id=job,
            index=None,
            state=_state(state),
            reason="|".join(reason).rstrip("|"),
            nodes=_nodes(nodes),
            started_s=_time_s(start),
            elapsed_s=parse_limit_s(used),
            left_s=parse_limit_s(left),
            restarts=int(restarts) if restarts.isdigit() else 0,
        )
        if common.meaning != "running" and not common.final:
            # What has not started has at most a time at which it may, which is a guess.
            common = replace(common, started_s=None)
        numbers = parse_indices(indices)
        found += [replace(common, index=n) for n in numbers] if numbers else [common]
    return found


def parse_sacct(text: str) -> list[ElementState]:
    """Lines of `sacct --parsable2 --noheader` in `SACCT_FIELDS`: elements, each with its steps.

    Elements that never started share one line (`21_[6-7,9%2]`); what has a line of its own is
    told by that one.
    """
    alone: dict[tuple[str, int | None], ElementState] = {}
    shared: dict[tuple[str, int | None], ElementState] = {}
    steps: dict[tuple[str, int | None], list[Step]] = {}
    for line in text.splitlines():
        parts = line.rstrip("\n").split("|")
        match = re.fullmatch(r"(\d+)(?:_(\d+)|_\[([^\]]*)\]?|\+\d+)?(?:\.(\S+))?", parts[0].strip())
        if match is None or len(parts) < len(SACCT_FIELDS):
            continue
        job, index, indices, step = match.groups()
        key = (job, int(index) if index else None)
        _, state, code, nodes, elapsed, start, end, *reason = parts
        if step:
            steps.setdefault(key, []).append(Step(step, _state(state), code, _nodes(nodes)))
            continue
        element = ElementState(
            job_id=job,
            index=key[1],
            state=_state(state),
            reason=_word("|".join(reason)),
            nodes=_nodes(nodes),
            started_s=_time_s(start),
            ended_s=_time_s(end),
            elapsed_s=parse_limit_s(elapsed),
        )
        if element.final:
            element = replace(element, exit_code=code)
        if indices is None:
            alone[key] = element
        else:
            shared |= {(job, n): replace(element, index=n) for n in parse_indices(indices)}
    both = shared | alone
    return [replace(e, steps=tuple(steps.get(key, ()))) for key, e in both.items()]


def parse_energy(text: str) -> dict[str, float]:
    """Lines of sacct in `ENERGY_FIELDS`: joules of each job or array element, `123` or `123_4`.

    A cluster without such a plugin says 0 or nothing: those are left out. Steps that run at the
    same time have each the whole node's energy, so the largest of a job's lines is taken.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition("|")
        job = name.partition(".")[0]
        if not re.fullmatch(r"\d+(_\d+)?", job) or not value.isdigit():
            continue
        joules = int(value)
        if joules and joules not in NO_VALUE:
            found[job] = max(found.get(job, 0.0), float(joules))
    return found


def parse_indices(text: str) -> list[int]:
    """Array indices as SLURM writes them: `3`, `4-7,9%2`, `[0-20:5]`; none for `N/A`.

    A list that was cut short (`1,3,...`) gives what it names.
    """
    found: list[int] = []
    for part in text.strip().strip("[]").partition("%")[0].split(","):
        if match := re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part.strip()):
            first, last, pace = match[1], match[2] or match[1], match[3] or "1"
            found += range(int(first), int(last) + 1, int(pace))
    return found


def index_list(indices: Iterable[int]) -> str:
    """Array indices as sbatch reads them: `3,17-19`. `indices` are sorted and distinct."""
    spans: list[list[int]] = []
    for index in indices:
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def first_node(nodes: str) -> str:
    """The first name of a node list: `n2` of `n[2-3,7]` or of `n2,n5`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodes)
    return f"{match[1]}{match[2] or ''}" if match else ""


def _state(text: str) -> str:
    """`CANCELLED` of `CANCELLED by 1001` and of a state cut short, `CANCELLED+`."""
    return (text.split() or [""])[0].rstrip("+")


def _word(text: str) -> str:
    return "" if text in ("None", "(null)", "N/A") else text


def _nodes(text: str) -> str:
    return "" if text in ("None assigned", "(null)", "N/A", "n/a", "None") else text.strip()


def _time_s(text: str) -> float | None:
    """Seconds of the epoch; SLURM writes the local time, or Unknown, None and N/A."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
