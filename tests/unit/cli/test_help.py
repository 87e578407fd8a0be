"""What `--help` prints: on 80 columns, with examples that their own command understands."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from llem.cli import COMMANDS, main

README = "\n".join(
    re.findall(
        r"```bash\n(.*?)```", (Path(__file__).parents[3] / "README.md").read_text(), re.DOTALL
    )
)
# Commands of commands.
ACTIONS = [
    *(("results", action) for action in ("list", "show", "compare", "export")),
    *(("data", action) for action in ("prepare", "show")),
    *(("image", action) for action in ("build", "verify")),
]


def calls(text):
    """The llem calls in lines of shell: words without comments, pipes and redirections."""
    for line in text.replace("\\\n", " ").splitlines():
        for part in line.split(" && "):
            if part.strip().startswith("llem "):
                words = shlex.split(part, comments=True)
                ends = [i for i, word in enumerate(words) if word in ("|", ">", "2>")]
                yield words[1 : ends[0]] if ends else words[1:]


@pytest.mark.parametrize("words", [(), *((name,) for name in COMMANDS), *ACTIONS], ids=" ".join)
def test_help_fits_a_terminal_of_80_columns(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert not [line for line in lines if len(line) > 80]


def understood(words, monkeypatch):
    """Whether the command takes the words and is called with them."""
    called = []
    module = import_module(f"llem.cli.{words[0]}")
    monkeypatch.setattr(module, "run", lambda args: called.append(args) or 0)
    return main(words) == 0 and len(called) == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_understood_as_they_stand(name, monkeypatch, capsys):
    examples = list(calls(import_module(f"llem.cli.{name}").EXAMPLE))
    assert examples
    for words in examples:
        assert understood(words, monkeypatch), (words, capsys.readouterr().err)


def test_so_are_the_calls_of_the_first_help_and_of_the_readme(monkeypatch, capsys):
    assert main(["--help"]) == 0
    shown = list(calls(capsys.readouterr().out)) + list(calls(README))
    assert len(shown) > 15
    for words in shown:
        assert understood(words, monkeypatch), (words, capsys.readouterr().err)
