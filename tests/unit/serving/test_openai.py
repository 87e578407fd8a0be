"""A server that the job starts, asked over HTTP: a stand-in that streams a token now and then."""

import shlex
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from deployments import serving

from llem.errors import InputError, LlemError
from llem.records import Phase, RequestStatus, read_rank
from llem.serving import serve_run
from llem.serving.requests import make_requests
from llem.serving.server import Server, filled
from llem.training.world import start_world

STANDIN = Path(__file__).with_name("standin.py")


@pytest.fixture(scope="module")
def world():
    with start_world() as found:
        yield found


def run_of(*flags, count=5, warmup=None, arrival=None, **options):
    command = shlex.join([sys.executable, str(STANDIN)]) + " {port} " + shlex.join(flags)
    return serving(
        backend="openai",
        options={"command": command, "ready_s": 30, **options},
        prompts={"count": count, "input_tokens": 4, "output_tokens": 6},
        warmup=warmup or {"least": 0, "most": 0},
        arrival=arrival,
    )


def serve(run, folder, world, **more):
    outcome = serve_run(run, attempt_dir=folder, world=world, meta={}, **more)
    return outcome, read_rank(folder / "rank-00000.h5")


def first_token(run, number):
    return make_requests(run, lambda: None)[number].tokens[0]


def test_tokens_are_recorded_as_they_arrive(world, tmp_path):
    run = run_of("--pause-s", "0.01", batch_size=2)
    outcome, record = serve(run, tmp_path, world)
    assert (outcome.status, outcome.step, outcome.failed) == ("completed", 5, 0)
    assert (outcome.tokens_in, outcome.tokens_out) == (5 * 4, 5 * 6)
    assert outcome.effective["served_model"] == "standin"
    assert outcome.effective["max_model_len"] == 99
    assert not len(record.forwards) and len(record.tokens) == 5 * 6
    for request in record.requests:
        tokens = record.tokens[record.tokens["request"] == request["request"]]
        assert tokens["index"].tolist() == list(range(6))
        assert (request["t_first_ns"], request["t_last_ns"]) == (
            tokens["t_ns"][0], tokens["t_ns"][-1],
        )  # fmt: skip
        assert (np.diff(tokens["t_ns"]) > 0).all()
        # Each token takes 10 ms, and the first one no less.
        assert tokens["t_ns"][-1] - request["t_start_ns"] >= 6 * 10e6
    assert {Phase.LOAD, Phase.SERVE} <= set(record.spans["phase"].tolist())


def test_no_more_requests_are_under_way_than_the_batch_has(world, tmp_path):
    _, record = serve(run_of(batch_size=2, count=7), tmp_path, world)
    starts, ends = (np.sort(record.requests[c]) for c in ("t_start_ns", "t_last_ns"))
    under_way = [(starts <= t).sum() - (ends < t).sum() for t in starts]
    assert max(under_way) == 2


def test_requests_are_sent_when_they_arrive(world, tmp_path):
    run = run_of(count=6, arrival={"kind": "fixed", "rate": 25.0})
    _, record = serve(run, tmp_path, world)
    rows = np.sort(record.requests, order="request")
    late_s = (rows["t_start_ns"] - rows["t_arrival_ns"]) / 1e9
    assert (late_s >= 0).all() and (np.diff(rows["t_arrival_ns"]) == 40_000_000).all()


def test_the_warm_up_leaves_neither_tokens_nor_requests(world, tmp_path):
    run = run_of(batch_size=2, warmup={"least": 2, "most": 2})
    outcome, record = serve(run, tmp_path, world)
    assert outcome.warmup.rounds == 2
    assert len(record.requests) == 5 and len(record.tokens) == 30


def test_a_request_that_is_refused_or_broken_off_fails_alone(world, tmp_path):
    numbers = [first_token(run_of(), n) for n in (1, 3)]
    assert len(set(numbers)) == 2
    run = run_of("--refuse", str(numbers[0]), "--break", str(numbers[1]), batch_size=5)
    outcome, record = serve(run, tmp_path, world)
    assert (outcome.status, outcome.step, outcome.failed) == ("completed", 3, 2)
    rows = np.sort(record.requests, order="request")
    failed = rows["status"] == RequestStatus.FAILED
    assert np.flatnonzero(failed).tolist() == [1, 3]
    assert rows["tokens_out"][failed].tolist() == [0, 2]
    said = [e["text"].decode() for e in record.events if e["code"] == b"request"]
    assert any("request 1: status 400: this one is too long" in text for text in said)
    assert any("request 3: the stream ended before its text did" in text for text in said)


def test_whoever_has_to_leave_breaks_off_and_ends_the_server(world, tmp_path):
    run = run_of("--pause-s", "0.05", "--child", str(tmp_path / "child"), batch_size=1)
    until = []

    def should_stop():
        until.append(None)
        return "signal SIGUSR1" if len(until) > 4 else None

    outcome, record = serve(run, tmp_path, world, should_stop=should_stop)
    assert outcome.status == "interrupted" and outcome.step < 5
    assert len(record.requests) == 5
    assert RequestStatus.LEFT in record.requests["status"]
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not Path("/proc", str(child)).exists() or "Z" in _state(child):
            break
        time.sleep(0.02)
    else:
        raise AssertionError("what the server started lives on")


def _state(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_server_that_ends_before_it_answers_is_told_in_its_own_words(world, tmp_path):
    with pytest.raises(LlemError, match=r"(?s)ended with status 1.*no such model"):
        serve(run_of("--fail", "no such model"), tmp_path, world)


def test_a_server_that_is_not_ready_in_time_is_ended(world, tmp_path):
    with pytest.raises(LlemError, match="did not answer within"):
        serve(run_of("--late-s", "60", ready_s=1), tmp_path, world)


def test_without_a_command_there_is_no_server(world, tmp_path):
    run = serving(backend="openai")
    with pytest.raises(InputError, match=r"options.command: is required"):
        serve(run, tmp_path / "a", world)


def test_a_command_has_its_names_filled_in_and_no_others():
    assert filled("serve {path} --port {port}", {"path": "a b", "port": 1}) == [
        "serve", "a b", "--port", "1",
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"known: \{path\}"):
        filled("serve {model}", {"path": "x"})


def test_a_program_that_is_not_there_is_named():
    server = Server("no-such-program-of-llem", values={})
    with pytest.raises(LlemError, match="no-such-program-of-llem: cannot be started"):
        server.start()
    server.stop()
