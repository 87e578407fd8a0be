"""Nothing that a user types becomes shell code: the guards of what may stand in a script."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.campaign.guards import (
    check_bind,
    check_constraint,
    check_directive,
    check_name,
    check_script_path,
    check_variable,
)

DANGEROUS = ["\n", "\r", "'", '"', "`", "$", "$(x)", "\\", ";", "\x00", "\x85", "\u2028", "\t", "#"]
GUARDS = [check_directive, check_constraint, check_variable, check_name, check_script_path,
          check_bind]  # fmt: skip


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("text", [t for t in DANGEROUS if t != "#"])
def test_dangerous_characters_are_refused_anywhere(guard, text):
    for value in (text, f"a{text}", f"{text}a", f"a{text}b"):
        with pytest.raises(ValueError, match=r"."):
            guard(value)


@given(st.text())
def test_what_a_directive_guard_lets_through_is_one_shell_word(text):
    try:
        value = check_directive(text)
    except ValueError:
        return
    # No quoting is relied on: read by a shell, it is the one word that it looks like.
    assert shlex.split(value) == [value]
    assert value.isascii()
    assert value.isprintable()


@given(st.text())
def test_a_script_path_quoted_is_one_shell_word_on_one_line(text):
    try:
        value = check_script_path(text)
    except ValueError:
        return
    quoted = shlex.quote(value)
    assert shlex.split(quoted) == [value]
    assert len(quoted.splitlines()) == 1


@pytest.mark.parametrize("bind", ["/a", "/a:/b", "/a:/b:ro"])
def test_binds_as_apptainer_reads_them(bind):
    assert check_bind(bind) == bind


@pytest.mark.parametrize("bind", ["", ":/b", "/a:/b:rx", "/a:/b:ro:x", "/a,/b", "/a:/b$x"])
def test_what_is_no_bind_is_refused(bind):
    with pytest.raises(ValueError, match=r"."):
        check_bind(bind)
