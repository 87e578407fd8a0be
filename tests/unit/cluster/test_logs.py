"""Which part of which log is a run's."""

import pytest

from llem.cluster.state.logs import MARK, find_run, own_tail, parts_of, tail
from llem.errors import InputError

ONE, TWO = "0123456789ab", "ba9876543210"


def mark(run, attempt):
    return f"2026-01-01 00:00:00 run {run}: attempt {attempt}, 1 M parameters, 2 M tokens\n"


def words(run, text):
    return f"2026-01-01 00:00:05 run {run}: {text}\n"


LOG = (
    "srun: starting\n"
    + mark(ONE, 0) + words(ONE, "completed, loss 2.0 +- 0.1")
    + mark(TWO, 0) + "Traceback (most recent call last):\n" + words(TWO, "failed: x")
    + "slurmstepd: *** DUE TO JOB REQUEUE ***\n"
    + mark(TWO, 1) + words(TWO, "step 3/9, loss 4.0")
)  # fmt: skip


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "x.log"
    path.write_text(LOG)
    return path


def test_what_an_attempt_wrote_lies_between_the_marks(log):
    (part,) = parts_of(log, ONE)
    assert part.attempt == 0
    assert part.lines() == (mark(ONE, 0) + words(ONE, "completed, loss 2.0 +- 0.1")).splitlines()
    first, second = parts_of(log, TWO)
    assert (first.attempt, second.attempt) == (0, 1)
    assert "Traceback (most recent call last):" in first.lines()
    assert second.lines(1) == [words(TWO, "step 3/9, loss 4.0").strip()]
    assert parts_of(log, "f" * 12) == []


def test_the_tail_of_the_last_attempt_holds_nothing_of_others(log):
    assert own_tail(log, TWO) == mark(TWO, 1) + words(TWO, "step 3/9, loss 4.0")
    assert "Traceback" not in own_tail(log, ONE)


def test_a_log_without_marks_is_the_elements_own(tmp_path):
    path = tmp_path / "x.log"
    path.write_text("module: command not found\n")
    assert own_tail(path, ONE) == "module: command not found\n"
    assert parts_of(path, ONE) == []
    assert own_tail(tmp_path / "none.log", ONE) == ""


def test_a_tail_is_short_whatever_the_log(tmp_path):
    path = tmp_path / "x.log"
    path.write_bytes(b"\xff" + b"a" * 100_000 + b"end")
    assert len(tail(path)) == 16 * 1024 and tail(path).endswith("end")


def test_the_mark_is_what_a_rank_prints():
    import inspect

    from llem.cluster.job import rank

    source = inspect.getsource(rank)
    assert "run {run.run_id}: attempt {" in source
    assert MARK.match(mark(ONE, 12))["attempt"] == "12"


def test_a_run_is_found_by_its_start(make):
    plan = make()
    run = plan.runs[0].run_id
    assert find_run(plan, run)[0] == run
    lone = next(
        run[:n] for n in range(1, 13) if sum(r.run_id.startswith(run[:n]) for r in plan.runs) == 1
    )
    name, array, index = find_run(plan, lone)
    assert name == run
    assert run in next(a for a in plan.arrays if a.name == array).elements[index]


def test_a_start_that_several_runs_share_is_refused_with_their_names(make):
    plan = make(seeds=30)
    first = {}
    for run in plan.runs:
        first.setdefault(run.run_id[0], []).append(run.run_id)
    start, several = next((k, v) for k, v in first.items() if len(v) > 1)
    with pytest.raises(InputError) as error:
        find_run(plan, start)
    assert sorted(several)[0] in str(error.value) and f"{len(several)} runs" in str(error.value)


def test_an_unknown_run_is_refused_with_what_was_meant(make):
    plan = make()
    run = plan.runs[0].run_id
    typo = run[:5] + ("0" if run[5] != "0" else "1") + run[6:]
    with pytest.raises(InputError, match="did you mean"):
        find_run(plan, typo)
    with pytest.raises(InputError, match="status"):
        find_run(plan, "")
