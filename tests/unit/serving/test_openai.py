"""A server that the job starts, asked over HTTP: a stand-in that streams a token now and then."""

import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch
from deployments import serving

from llem.errors import InputError, LlemError, UnavailableError
from llem.records import Phase, RequestStatus, read_rank
from llem.serving import serve_run
from llem.serving.requests import make_requests
from llem.serving.servers import openai
from llem.serving.servers.memory import ServerMemory
from llem.serving.servers.server import Server, filled
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


def test_every_token_counts_also_those_of_a_piece_without_text(world, tmp_path):
    """vLLM sends a piece for each token of a character that is not whole, and for several tokens
    at once where the reader was slow."""
    run = run_of("--half", "--together", "2", "--no-usage", "--pause-s", "0.06")
    outcome, record = serve(run, tmp_path, world)
    assert outcome.tokens_out == 5 * 6 and len(record.tokens) == 5 * 6
    assert outcome.effective["token_times"] == "of token ids"
    first = record.tokens[record.tokens["request"] == 0]
    assert len(set(first["t_ns"].tolist())) == 3
    # The first one is known long before the first text. On a busy machine a piece may be read
    # late, not each time.
    assert max(record.requests["t_last_ns"] - record.requests["t_first_ns"]) >= 60e6


def test_a_server_that_sends_no_ids_is_counted_by_its_own_usage(world, tmp_path):
    outcome, record = serve(run_of("--no-ids", "--half", "--swallow"), tmp_path, world)
    assert outcome.effective["token_times"] == "of pieces of text"
    assert outcome.effective["tokens_counted_by"] == "the server"
    assert record.requests["tokens_out"].tolist() == [6] * 5
    assert (outcome.tokens_in, outcome.tokens_out) == (5 * 4, 5 * 6)
    # one piece of text for each, and results say that times of tokens are missing
    assert len(record.tokens) == 5


@pytest.mark.parametrize("ends", [(), ("--rest",), ("--end-with-last",)])
def test_a_server_that_sends_a_piece_for_each_token_has_the_times_of_all(world, tmp_path, ends):
    """llama-cpp-python sends tokens that have no text as pieces without, at times with what is
    left of a character at the end."""
    flags = ("--only-text", "--no-ids", "--no-usage", "--half", *ends)
    outcome, record = serve(run_of(*flags), tmp_path, world)
    assert outcome.effective["token_times"] == "of pieces"
    assert record.requests["tokens_out"].tolist() == [6] * 5
    assert len(record.tokens) == outcome.tokens_out == 5 * 6


def test_a_text_that_reached_its_length_has_as_many_tokens_whoever_counts(world, tmp_path):
    """One piece of text came of each, and the server counts nothing."""
    flags = ("--no-ids", "--no-usage", "--half", "--swallow")
    outcome, record = serve(run_of(*flags), tmp_path, world)
    assert outcome.effective["tokens_counted_by"] == "the length asked for, or times"
    assert record.requests["tokens_out"].tolist() == [6] * 5
    assert (outcome.tokens_out, len(record.tokens)) == (5 * 6, 5)


def test_a_server_that_takes_text_alone_says_that_it_needs_a_tokenizer(
    world, tmp_path, monkeypatch
):
    def nothing(_):
        raise UnavailableError("the tokenizer in there needs transformers", remedy="install it")

    monkeypatch.setattr("llem.serving.servers.openai.texts_of", nothing)
    with pytest.raises(UnavailableError, match="takes no token ids, and the tokenizer in there"):
        serve(run_of("--only-text"), tmp_path, world)


def test_what_a_server_does_not_take_is_left_out_and_told(world, tmp_path):
    flags = ["--only-text", "--unknown", "ignore_eos", "--unknown", "return_token_ids"]
    outcome, record = serve(run_of(*flags), tmp_path, world)
    assert (outcome.status, outcome.step, outcome.failed) == ("completed", 5, 0)
    effective = outcome.effective
    assert effective["prompts_sent_as"] == "text"
    assert effective["not_taken"] == ["return_token_ids", "ignore_eos"]
    assert effective["ignore_eos"] is False
    for words in ("prompt must be a string", "Unexpected keys in the request: ['ignore_eos']"):
        assert any(words in text for text in effective["refused"])
    assert len(record.requests) == 5


def test_a_server_that_is_well_and_tells_no_model_serves_ours(world, tmp_path):
    outcome, _ = serve(run_of("--only-health"), tmp_path, world)
    assert (outcome.step, outcome.effective["served_model"]) == (5, "tiny")


def test_a_server_that_takes_nothing_is_told_once_and_no_request_fails(world, tmp_path):
    with pytest.raises(InputError, match=r"takes no request of llem's: status 422"):
        serve(run_of("--unknown", "prompt"), tmp_path, world)


def test_requests_beyond_what_the_server_takes_are_one_fault(world, tmp_path):
    with pytest.raises(InputError, match=r"a request of 10 tokens, in and out, .* takes 9"):
        serve(run_of("--context", "9"), tmp_path, world)


def test_an_error_within_a_stream_is_told_in_the_servers_words(world, tmp_path):
    run = run_of("--err", str(first_token(run_of(), 2)))
    outcome, record = serve(run, tmp_path, world)
    assert (outcome.step, outcome.failed) == (4, 1)
    said = [e["text"].decode() for e in record.events if e["code"] == b"request"]
    assert said == ["request 2: Token id 320 is out of vocabulary"]


def test_a_server_that_dies_while_it_serves_fails_the_run_not_its_requests(world, tmp_path):
    run = run_of("--die", str(first_token(run_of(), 4)), batch_size=5)
    with pytest.raises(LlemError, match="the server ended with status 3"):
        serve(run, tmp_path, world)


def test_a_server_that_dies_a_moment_after_its_engine_fails_the_run_too(world, tmp_path):
    run = run_of("--die-slowly", str(first_token(run_of(), 4)), batch_size=5)
    with pytest.raises(LlemError, match="the server ended with status 0"):
        serve(run, tmp_path, world)


def test_the_warm_up_serves_no_prompt_that_the_window_has(world, tmp_path):
    run = run_of("--prompts", str(tmp_path / "prompts"), batch_size=5,
                 warmup={"least": 2, "most": 2})  # fmt: skip
    serve(run, tmp_path, world)
    sent = [tuple(json.loads(line)) for line in (tmp_path / "prompts").read_text().splitlines()]
    # a first one to hear what the server takes, two rounds, the window
    assert len(sent) == len(set(sent)) == 1 + 3 * 5
    assert len({prompt[1:] for prompt in sent[1:]}) == 5


def test_a_server_is_not_waited_for_by_whoever_has_to_leave(world, tmp_path):
    asked = []

    def should_stop():
        asked.append(None)
        return "signal SIGUSR1" if len(asked) > 3 else None

    began = time.monotonic()
    outcome, record = serve(run_of("--late-s", "600"), tmp_path, world, should_stop=should_stop)
    assert time.monotonic() - began < 300
    assert (outcome.status, outcome.reason) == ("interrupted", "signal SIGUSR1")
    assert record.requests["status"].tolist() == [RequestStatus.LEFT] * 5


def test_a_port_that_was_taken_meanwhile_is_changed_for_another(tmp_path):
    marker = tmp_path / "once"
    code = (
        "import pathlib, sys, time\n"
        f"marker = pathlib.Path({str(marker)!r})\n"
        "if not marker.exists():\n"
        "    marker.write_text(sys.argv[1])\n"
        "    sys.exit('OSError: [Errno 98] Address already in use')\n"
        "marker.write_text(sys.argv[1] + ' again')\n"
        "time.sleep(60)\n"
    )
    server = Server(shlex.join([sys.executable, "-c", code]) + " {port}", values={})
    server.start()
    first = server.port
    server.wait(lambda: "again" in marker.read_text() if marker.exists() else False, timeout_s=30)
    assert server.port != first and marker.read_text() == f"{server.port} again"
    server.stop()


def test_the_memory_of_a_server_is_that_of_all_its_processes(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "if len(sys.argv) < 2: subprocess.Popen([sys.executable, sys.argv[0], 'child'])\n"
        "held = bytearray(b'x') * 60_000_000\n"
        "open(sys.argv[0] + ('.c' if len(sys.argv) > 1 else '.p'), 'w').close()\n"
        "time.sleep(60)\n"
    )
    program = tmp_path / "program.py"
    program.write_text(code)
    server = Server(shlex.join([sys.executable, str(program)]), values={})
    memory = ServerMemory(server.processes, torch.device("cpu"))
    assert math.isnan(memory.read().bytes) and memory.read().reason
    server.start()
    ready = [Path(f"{program}.p"), Path(f"{program}.c")]
    server.wait(lambda: all(file.exists() for file in ready), timeout_s=30)
    assert len(server.processes()) == 2
    assert 120e6 < memory.read().bytes < 200e6
    memory.begin_window()
    assert 120e6 < memory.read().bytes < 200e6
    server.stop()


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    code = (
        "import os, pathlib, sys, time\n"
        "from llem.serving.servers.server import Server\n"
        "server = Server('sleep 1000', values={})\n"
        "server.start()\n"
        "pathlib.Path(sys.argv[1]).write_text(str(server.processes()[0]))\n"
        "time.sleep(60)\n"
    )
    told = tmp_path / "pid"
    rank = subprocess.Popen([sys.executable, "-c", code, str(told)])
    for _ in range(600):
        if told.exists() and told.read_text():
            break
        time.sleep(0.05)
    rank.kill()
    rank.wait()
    _is_gone(int(told.read_text()))


def test_the_last_words_begin_with_the_error_that_began_it(tmp_path):
    lines = [
        "(EngineCore pid=7) ERROR 11-27 16:31:03 [core.py:12] ValueError: no room for the cache",
        *[f"(APIServer pid=6) ERROR 11-27 16:31:03 [async.py:9]   async for one in {i}:"
          for i in range(40)],
    ]  # fmt: skip
    file = tmp_path / "words"
    file.write_text("\n".join(lines))
    server = Server(f"cat {file}", values={})
    server.start()
    with pytest.raises(LlemError) as caught:
        server.wait(lambda: False, timeout_s=20)
    told = str(caught.value).splitlines()
    assert told[1:3] == ["  ValueError: no room for the cache", "  ..."]
    assert "async for one in 39" in told[-1]
    server.stop()


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


def test_a_request_that_is_refused_or_broken_off_fails_alone(world, tmp_path, monkeypatch):
    # This server lives on, and is watched for so long to be sure of it.
    monkeypatch.setattr(openai, "DEATH_S", 1.0)
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
    child, prompts = tmp_path / "child", tmp_path / "prompts"
    run = run_of("--pause-s", "0.05", "--child", str(child), "--prompts", str(prompts),
                 batch_size=1)  # fmt: skip

    def should_stop():
        """Once the server has the second request of the window."""
        sent = prompts.read_text().splitlines() if prompts.exists() else []
        return "signal SIGUSR1" if len(sent) > 2 else None

    outcome, record = serve(run, tmp_path, world, should_stop=should_stop)
    assert outcome.status == "interrupted" and outcome.step < 5
    assert len(record.requests) == 5
    assert RequestStatus.LEFT in record.requests["status"]
    _is_gone(int(child.read_text()))


@pytest.mark.slow
def test_whoever_has_to_leave_waits_for_no_server_that_says_nothing_more(world, tmp_path):
    """SLURM's warning reaches every process of a step: a vLLM that ends keeps its streams open for
    longer than a job that is preempted has."""
    child, prompts = tmp_path / "child", tmp_path / "prompts"
    flags = ("--hang", "--stubborn", "--child", str(child), "--prompts", str(prompts))
    asked_s = []

    def should_stop():
        # The first prompt is that which finds out what the server takes.
        if prompts.exists() and len(prompts.read_text().splitlines()) > 1:
            asked_s.append(time.monotonic())
            return "signal SIGTERM"
        return None

    run = run_of(*flags)
    outcome, record = serve(run, tmp_path, world, should_stop=should_stop)
    assert outcome.status == "interrupted" and outcome.reason == "signal SIGTERM"
    assert record.requests["status"].tolist() == [RequestStatus.LEFT] * 5
    assert time.monotonic() - asked_s[0] < 15
    _is_gone(int(child.read_text()))


def test_a_warning_that_ends_the_server_while_it_loads_is_no_failure(world, tmp_path):
    """vLLM loads for minutes, and dies of the signal that SLURM sends to all of a step."""
    child = tmp_path / "child"
    warned = []

    def should_stop():
        if not warned and child.exists() and (pid := child.read_text()):
            server = re.search(r"PPid:\s*(\d+)", Path("/proc", pid, "status").read_text())
            os.kill(int(server[1]), signal.SIGKILL)
            warned.append(time.sleep(0.2))
            return None
        return "signal SIGTERM" if warned else None

    run = run_of("--late-s", "60", "--child", str(child))
    outcome, record = serve(run, tmp_path, world, should_stop=should_stop)
    assert (outcome.status, outcome.reason) == ("interrupted", "signal SIGTERM")
    assert record.requests["status"].tolist() == [RequestStatus.LEFT] * 5
    _is_gone(int(child.read_text()))


def _is_gone(pid):
    for _ in range(3000):
        if not Path("/proc", str(pid)).exists() or "Z" in _state(pid):
            return
        time.sleep(0.02)
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
