"""Spending much is confirmed: at a terminal by an answer, elsewhere by `--yes`."""

import io

import pytest

from llem.cli._command import confirm
from llem.errors import InputError


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("answer", ["y\n", "Yes\n"])
def test_yes_at_a_terminal_goes_on(monkeypatch, answer, capsys):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    confirm(500, what="12 runs", yes=False)
    assert "12 runs is expected to take 500 GPU-hours" in capsys.readouterr().err


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
