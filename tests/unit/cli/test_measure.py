"""`llem measure`: the command's own status, its signals, and one line about its energy."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from llem.cli.measure import command_has_it, run_passing_signals, sampling_interval

LLEM = [sys.executable, "-m", "llem", "measure", "--out", "run.h5"]


def measure(*words, cwd, **options):
    return subprocess.run([*LLEM, *words], cwd=cwd, capture_output=True, text=True, check=False,
                          **options)  # fmt: skip


def test_the_last_line_tells_joules_seconds_watts_quality_and_where_the_record_is(tmp_path):
    done = measure("--", "sh", "-c", "echo out; sleep 0.3", cwd=tmp_path)
    assert done.stdout == "out\n" and done.returncode == 0
    number = r"[0-9.]+(e[+-]\d+)? "
    line = done.stderr.splitlines()[-1]
    assert re.fullmatch(
        rf"{number}\w?J in {number}m?s, mean {number}\w?W \(model, 1 device\): .*/run\.h5", line
    ), line


def test_as_json_the_answer_is_alone_on_standard_output(tmp_path):
    done = measure("--json", "--", "sh", "-c", "echo out; exit 3", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert done.returncode == 3 and "out\n" in done.stderr
    assert told["energy_j"] > 0 and told["quality"] == "model"
    assert told["mean_power_w"] == pytest.approx(told["energy_j"] / told["duration_s"])


@pytest.mark.parametrize("words", [["false"], ["sh", "-c", "exit 42"]])
def test_the_status_is_the_commands(words):
    assert run_passing_signals(words) == subprocess.run(words, check=False).returncode


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_that_a_signal_ends_gives_128_and_its_number(number):
    assert run_passing_signals(["sh", "-c", f"kill -{int(number)} $$"]) == 128 + number


SAYS = """
import signal, sys, time
def say(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGTERM:
        sys.exit(9)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
    signal.signal(number, say)
print("ready", flush=True)
while True:
    time.sleep(0.01)
"""


def test_signals_reach_the_command_once_and_the_energy_is_told_all_the_same(tmp_path):
    process = subprocess.Popen([*LLEM, "--", sys.executable, "-c", SAYS], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    for name in ("SIGUSR1", "SIGINT", "SIGUSR2", "SIGHUP", "SIGTERM"):
        process.send_signal(getattr(signal, name))
        assert process.stdout.readline() == f"{name}\n"
    rest, errors = process.communicate(timeout=20)
    assert rest == "" and process.returncode == 9 and "J in" in errors


def test_what_the_terminal_sends_to_both_is_not_sent_again(tmp_path):
    """Ctrl-C in a terminal goes to the whole foreground group, from the kernel."""
    leader, follower = os.openpty()
    code = f"import os; os.setsid(); import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); \
os.execv({sys.executable!r}, {[*LLEM, '--', sys.executable, '-c', SAYS]!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdin=follower, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "ready\n"
        os.write(leader, b"\x03")
        assert process.stdout.readline() == "SIGINT\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20)[0] == "SIGTERM\n"
    finally:
        process.kill()
        os.close(leader)
        os.close(follower)


def test_a_signal_to_a_whole_step_is_known_by_its_sender():
    class Info:
        si_code, si_pid = 0, os.getpid()

    assert not command_has_it(Info, {"SLURM_STEP_ID": "0"})
    Info.si_code = 128
    assert command_has_it(Info, {})


@pytest.mark.parametrize(
    ("text", "seconds"), [("0.1", 0.1), ("100 ms", 0.1), ("100ms", 0.1), ("2 s", 2.0), ("1s", 1.0)]
)
def test_intervals_are_read_with_their_unit(text, seconds):
    assert sampling_interval(text) == pytest.approx(seconds)


def test_every_fault_of_a_call_is_told_at_once_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "run.h5").write_text("mine")
    done = measure("--interval", "fast", "--meters", "nvm", "--", "no-such-program", cwd=tmp_path)
    assert done.returncode == 2
    for words in ("exists already", "'fast'", "'no-such-program'", "no meter nvm"):
        assert words in done.stderr
    assert (tmp_path / "run.h5").read_text() == "mine"
    assert measure("--interval", "90", "--", "true", cwd=tmp_path).returncode == 2
