"""The line that tells how far a campaign is, in a terminal and in a file."""

import re

import pytest

from llem.cli._progress import Seen, bar_of, clock, log_line, terminal_line

SEEN = Seen(
    share=0.4312,
    runs=120,
    counts={"completed": 41, "diverged": 2, "running": 3, "waiting": 74},
    losses=(2.31449, 1.9, 2.0),
    tokens_per_s=24_812.3,
    energy_j=1234.5,
    elapsed_s=60,
    left_s=79.2,
)


def test_a_wide_terminal_shows_everything():
    assert terminal_line(SEEN, width=130) == (
        " 43 % ████████████▉·················  43/120 runs  3 running  loss 2.314 1.900 +1  "
        "24.8 k tokens/s  1.23 kJ  left    1:19"
    )


@pytest.mark.parametrize("width", range(1, 160))
def test_no_line_is_longer_than_the_terminal_is_wide(width):
    assert len(terminal_line(SEEN, width=width)) <= width


def test_a_narrow_terminal_keeps_what_matters_most():
    assert terminal_line(SEEN, width=48).split("·")[-1].strip() == "43/120 runs  left    1:19"
    assert terminal_line(SEEN, width=24).strip().startswith("43 %")


def test_failures_are_the_last_words_to_go():
    failing = Seen(share=0.5, runs=9, counts={"failed": 4, "running": 1}, left_s=30.0)
    assert "4 failed" in terminal_line(failing, width=50)


def test_a_bar_is_filled_by_its_share():
    assert bar_of(0, 4) == "····"
    assert bar_of(0.5, 4) == "██··"
    assert bar_of(0.53, 4) == "██▏·"
    assert bar_of(1.2, 4) == "████"
    assert bar_of(0.5, 4, ascii_only=True) == "##--"


def test_a_file_gets_plain_columns_without_control_characters():
    line = log_line(SEEN, clock="08:40:11")
    assert line == (
        "08:40:11  43 %   43/120 runs  3 running  loss 2.314 1.900 +1  24.8 k tokens/s  1.23 kJ  "
        "left    1:19"
    )
    assert re.fullmatch(r"[ -~]+", line)


def test_what_is_not_known_is_left_out():
    assert log_line(Seen(share=0, runs=3, counts={"waiting": 3}), clock="08:40:11") == (
        "08:40:11   0 %  0/3 runs  left    -:--"
    )


def test_time_left_is_read_like_a_clock():
    shown = [clock(s) for s in (0.4, 59.6, 3599, 3661, 359_999, 360_000, float("nan"))]
    assert shown == ["0:00", "1:00", "59:59", "1:01:01", "99:59:59", "4.2 d", "-:--"]
