"""The words of squeue and sacct, read by pure functions: real answers of SLURM 22.05, and others.

`captured/*-22.05*.txt` are answers of the test cluster. What later releases add (states, more
fields in the same form) stands in the tests, after their manuals.
"""

from pathlib import Path

import pytest

from llem.cluster.scheduler.facts import (
    SACCT_FIELDS,
    SQUEUE_FIELDS,
    STATES,
    ElementState,
    Step,
    first_node,
    index_list,
    parse_energy,
    parse_indices,
    parse_sacct,
    parse_squeue,
)

CAPTURED = Path(__file__).parent / "captured"


def by_key(states):
    return {(s.job_id, s.index): s for s in states}


def squeue_line(**values):
    fields = dict.fromkeys(SQUEUE_FIELDS, "") | {
        "ArrayJobID": "17", "ArrayTaskID": "3", "State": "RUNNING", "TimeUsed": "0:05",
        "TimeLeft": "55:00", "StartTime": "2026-11-27T00:00:21", "RestartCnt": "0",
        "NodeList": "n2", "Reason": "None",
    }  # fmt: skip
    return "".join(f"{(fields | values)[name]}|" for name in SQUEUE_FIELDS)


def sacct_line(**values):
    fields = {
        "JobID": "17_3", "State": "FAILED", "ExitCode": "1:0", "NodeList": "n2",
        "Elapsed": "00:00:05", "Start": "2026-11-27T00:00:21", "End": "2026-11-27T00:00:26",
        "Reason": "None",
    }  # fmt: skip
    return "|".join((fields | values)[name] for name in SACCT_FIELDS)


def test_squeue_of_22_05():
    found = by_key(parse_squeue((CAPTURED / "squeue-22.05.txt").read_text()))
    by_meaning = {}
    for state in found.values():
        by_meaning.setdefault(state.meaning, []).append(state)
    running = by_meaning["running"]
    assert all(s.nodes and s.started_s and s.left_s for s in running)
    assert not any(s.started_s for s in by_meaning["queued"])
    assert {s.reason for s in by_meaning["queued"]} >= {
        "JobArrayTaskLimit", "Dependency", "JobHeldUser",
    }  # fmt: skip
    # requeued once, and said so
    assert 1 in {s.restarts for s in found.values()}
    # one that has ended has no exit code here: only accounting knows it
    assert {s.state for s in by_meaning["ended"]} == {"COMPLETED", "FAILED"}
    assert not any(s.exit_code for s in found.values())


def test_indices_told_in_one_line_are_the_same_elements():
    apart = by_key(parse_squeue((CAPTURED / "squeue-22.05.txt").read_text()))
    together = by_key(parse_squeue((CAPTURED / "squeue-22.05-ranges.txt").read_text()))
    assert {k: v.state for k, v in apart.items()} == {k: v.state for k, v in together.items()}


def test_sacct_of_22_05():
    found = by_key(parse_sacct((CAPTURED / "sacct-22.05.txt").read_text()))
    assert found["8", 0].state == "COMPLETED" and found["8", 0].exit_code == "0:0"
    assert found["7", 0].state == "TIMEOUT" and found["7", 0].elapsed_s == 61
    assert found["27", 0].state == "NODE_FAIL" and found["27", 0].nodes == "n4"
    assert found["13", 0].nodes == "n[2-3]"
    assert found["9", 0].steps == (
        Step("batch", "FAILED", "127:0", "n1"),
        Step("0", "FAILED", "127:0", "n1"),
    )
    # elements that never started share a line; what has one of its own is told by that
    assert found["21", 7].state == found["21", 9].state == "CANCELLED"
    assert found["21", 7].nodes == "" and found["21", 7].started_s is None
    assert found["21", 6].nodes == "n2" and found["21", 6].elapsed_s == 2
    assert found["22", None].state == "CANCELLED"
    assert found["23", 2].state == "CANCELLED"


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("CANCELLED by 1001", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_ME"),
        ("TIMEOUT", "TIMEOUT"),
    ],
)
def test_states_of_sacct_lose_what_is_no_state(line, state):
    assert parse_sacct(sacct_line(State=line))[0].state == state


def test_a_step_out_of_memory_stays_with_its_failed_job():
    text = "\n".join(
        [
            sacct_line(ExitCode="1:0"),
            sacct_line(JobID="17_3.batch"),
            sacct_line(JobID="17_3.extern", State="COMPLETED", ExitCode="0:0"),
            sacct_line(JobID="17_3.0", State="OUT_OF_MEMORY", ExitCode="0:125"),
        ]
    )
    (element,) = parse_sacct(text)
    assert [s.state for s in element.steps] == ["FAILED", "COMPLETED", "OUT_OF_MEMORY"]


def test_an_exit_code_counts_only_with_a_final_state():
    assert parse_sacct(sacct_line(State="RUNNING", ExitCode="0:0"))[0].exit_code == ""


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("3", [3]),
        ("4-7,9%2", [4, 5, 6, 7, 9]),
        ("[4-7,9%2]", [4, 5, 6, 7, 9]),
        ("0-20:5", [0, 5, 10, 15, 20]),
        ("1,3,5,...", [1, 3, 5]),
        ("N/A", []),
        ("", []),
    ],
)
def test_indices_as_slurm_writes_them(text, indices):
    assert parse_indices(text) == indices


@pytest.mark.parametrize(
    ("indices", "text"), [([3], "3"), ([0, 1, 2], "0-2"), ([3, 17, 18, 19, 21], "3,17-19,21")]
)
def test_indices_are_written_as_sbatch_reads_them(indices, text):
    assert index_list(indices) == text
    assert parse_indices(text) == indices


def test_a_state_that_is_not_in_the_table_is_unknown_and_not_failed():
    element = parse_squeue(squeue_line(State="BRAND_NEW_STATE"))[0]
    assert element.meaning == "unknown"
    assert not element.final
    assert set(STATES.values()) == {"queued", "held", "running", "ended"}


# Every state that squeue's manual lists under JOB STATE CODES.
MANUAL = [
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "CONFIGURING", "COMPLETING", "DEADLINE", "FAILED",
    "NODE_FAIL", "OUT_OF_MEMORY", "PENDING", "PREEMPTED", "RUNNING", "RESV_DEL_HOLD", "REQUEUE_FED",
    "REQUEUE_HOLD", "REQUEUED", "RESIZING", "REVOKED", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT",
    "STOPPED", "SUSPENDED", "TIMEOUT",
]  # fmt: skip


@pytest.mark.parametrize("state", MANUAL)
def test_every_state_of_the_manual_has_a_meaning(state):
    assert parse_squeue(squeue_line(State=state))[0].meaning != "unknown"


@pytest.mark.parametrize(
    ("state", "reason", "todo"),
    [
        ("PENDING", "Priority", ""),
        ("PENDING", "Resources", ""),
        ("PENDING", "JobHeldUser", "release"),
        ("PENDING", "launch failed requeued held", "release"),
        ("PENDING", "DependencyNeverSatisfied", "resubmit"),
        ("REQUEUE_HOLD", "None", "release"),
        ("SPECIAL_EXIT", "None", "release"),
        ("RUNNING", "None", ""),
    ],
)
def test_what_waits_for_ever_says_what_to_do(state, reason, todo):
    stuck = parse_squeue(squeue_line(State=state, Reason=reason))[0].stuck
    assert (todo in stuck) if todo else stuck == ""


def test_lines_of_other_programs_are_passed_over():
    assert parse_squeue("Welcome to HPC!\n\n" + squeue_line() + "\nodd|line\n") == [
        *parse_squeue(squeue_line())
    ]
    assert parse_sacct("sacct: note\n\n") == []


def test_times_that_are_none():
    element = parse_squeue(squeue_line(StartTime="N/A", TimeLeft="UNLIMITED", TimeUsed="INVALID"))[
        0
    ]
    assert (element.started_s, element.left_s, element.elapsed_s) == (None, None, None)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n2", "n2"),
        ("n[2-3,7]", "n2"),
        ("n2,n5", "n2"),
        ("jwb[0012,0101]", "jwb0012"),
        ("", ""),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    assert first_node(nodes) == first


def test_a_job_without_an_array_has_no_index():
    assert parse_squeue(squeue_line(ArrayTaskID="N/A"))[0] == ElementState(
        "17", None, "RUNNING", "None", "n2", started_s=parse_squeue(squeue_line())[0].started_s,
        elapsed_s=5, left_s=3300,
    )  # fmt: skip


def test_the_energy_of_a_job_is_that_of_its_nodes_once_and_no_value_is_none():
    """Two steps that overlap see the same nodes; 2^32-2 is SLURM's word for "no value"."""
    text = """\
17_0|0
17_0.batch|52000
17_0.0|51000
17_0.1|50500
17_1|4294967294
17_1.0|
17_2.extern|18446744073709551614
21|1234
17_[3-9]|0
"""
    assert parse_energy(text) == {"17_0": 52000.0, "21": 1234.0}
