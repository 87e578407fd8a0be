"""What a call says while runs are trained."""

import time
from types import SimpleNamespace

from llem.pipeline import saying
from llem.pipeline.saying import Say

PLAN = SimpleNamespace(runs=[SimpleNamespace(predicted=SimpleNamespace(duration_s=100.0))] * 3)


def test_a_long_run_is_not_silent_and_says_how_long_the_rest_takes(monkeypatch, capsys):
    began = time.monotonic()
    monkeypatch.setattr(saying, "SILENCE_S", 0.05)
    # Half of it was done before the call, which does 15 s of the planned work in a second.
    monkeypatch.setattr(
        saying, "_work_done_s", lambda planned: 150.0 + 15.0 * (time.monotonic() - began)
    )
    with Say(True).meanwhile(SimpleNamespace(plan=PLAN)):
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    for line in lines:
        assert line.startswith("llem: 5") and " % of the work is done, about " in line
        assert 7 < float(line.split("about ")[1].split(" s to go")[0]) < 13


def test_where_nothing_is_to_be_said_nothing_is_looked_at(monkeypatch, capsys):
    monkeypatch.setattr(saying, "SILENCE_S", 0.05)
    monkeypatch.setattr(saying, "_work_done_s", None)
    with Say(False).meanwhile(SimpleNamespace(plan=PLAN)):
        time.sleep(0.2)
    assert capsys.readouterr().err == ""
