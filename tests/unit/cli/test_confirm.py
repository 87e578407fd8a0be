"""Spending much is confirmed: at a terminal by an answer, elsewhere by `--yes`."""

import io

import pytest

from llem.cli import main
from llem.cli._command import confirm
from llem.errors import InputError


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("answer", ["y\n", "Yes\n"])
def test_yes_at_a_terminal_goes_on(monkeypatch, answer, capsys):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    confirm(500, what="12 runs", yes=False)
    assert "12 runs: expected to take 500 GPUh" in capsys.readouterr().err


@pytest.mark.parametrize("stdin", [Terminal("\n"), Terminal("n\n"), Terminal(""), io.StringIO("y")])
def test_anything_else_submits_nothing(monkeypatch, stdin):
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(InputError) as caught:
        confirm(500, what="12 runs", yes=False)
    assert caught.value.exit_status == 2


def test_without_a_terminal_the_remedy_is_yes(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(InputError, match="add --yes"):
        confirm(500, what="12 runs", yes=False)


def test_little_is_not_asked_about_and_yes_is_enough(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    confirm(100, what="12 runs", yes=False)
    confirm(1e6, what="12 runs", yes=True)


def test_a_calibration_states_its_cost_and_asks_before_it_spends_much(
    monkeypatch, tmp_path, capsys
):
    (tmp_path / "campaign.yaml").write_text(
        "name: c\ntarget: 1e24 FLOP\nbudget: 1e5 GPUh\nmodel: {vocabulary: 32000, context: 2048}\n"
        "site: {name: s, nodes: 64, gpus_per_node: 4, gpu: {name: H100}}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main(["calibrate", "--out", "cal", "--steps", "2000"]) == 2
    told = capsys.readouterr().err
    assert "5 shapes of" in told and "2000 to 2000 steps each: about" in told
    assert "add --yes" in told
    assert not (tmp_path / "cal" / "jobs" / "submitted.json").exists()
