"""What is told and shown is what was played."""

from io import StringIO

import numpy as np
import pytest

from llem.cli._stage import ALARM, DOT, scene
from llem.rehearsal import (
    Failures,
    Film,
    Measured,
    Pace,
    World,
    close_ups,
    followed,
    planted,
    play,
    tell,
)

LAW = planted("chinchilla")
TROUBLE = Failures(preemption=0.2, node_failure=0.2, exception=0.1, divergence=0.1)


@pytest.fixture(scope="module")
def world(gpu_plan):
    worlds = (World(plan=gpu_plan, planted=LAW, seed=s, failures=TROUBLE) for s in range(100))
    wanted = {"completed", "killed", "interrupted", "diverged", "failed"}
    return next(w for w in worlds if wanted <= {a.status for a in play(w)})


@pytest.fixture(scope="module")
def attempts(world):
    return play(world)


@pytest.fixture(scope="module")
def events(world, attempts):
    return list(tell(world, attempts, follow=followed(attempts)))


def text(frame, *, width, height=40):
    from rich.console import Console

    out = StringIO()
    Console(file=out, width=width, no_color=True).print(scene(frame, width=width, height=height))
    return out.getvalue().splitlines()


def test_events_come_in_order_and_every_attempt_ends_once(attempts, events):
    times = [e.t_s for e in events]
    assert times == sorted(times)
    ends = {"completed", "killed", "interrupted", "failed", "diverged"}
    assert sum(e.kind in ends for e in events) == len(attempts)


def test_the_followed_run_is_told_from_its_model_to_its_weights(events):
    kinds = [e.kind for e in events]
    for kind in ("begin", "start", "train", "step", "evaluation", "checkpoint", "export",
                 "summary"):  # fmt: skip
        assert kind in kinds
    told = " ".join(e.text for e in events if e.kind == "start")
    for words in ("model: llama", "tokenizer: vocabulary of 32000", "data:", "4 ranks on 2 nodes",
                  "[rank 0/4]", "all-reduce test passed"):  # fmt: skip
        assert words in told


def test_losses_that_are_told_are_those_of_the_records(world, attempts, events):
    a = next(a for a in attempts if a.run.run_id == followed(attempts) and a.status == "completed")
    found = Measured(world, a, interval_s=1.0)
    for event in events:
        if event.kind == "step" and event.run_id == a.run.run_id and event.t_s > a.t0_s:
            step = int(event.text.split("/")[0].removeprefix("step "))
            assert f"loss {found.curve.loss[step - 1]:.4f}" in event.text


def test_the_fit_arrives_as_runs_finish(events):
    assert all("alpha" in e.text or "no law" in e.text for e in events if e.kind == "fit")
    assert any(e.kind == "fit" for e in events)


def test_counts_of_a_frame_are_those_of_the_attempts(world, attempts):
    film = Film(world, attempts, follow=followed(attempts))
    for share in np.linspace(0, 1, 9).tolist():
        frame = film.at(share * film.end_s)
        at_work = [a for a in attempts if a.t0_s <= frame.t_s < a.t1_s]
        assert frame.running == len(at_work)
        assert frame.done + frame.diverged + frame.running + frame.waiting == frame.runs
    assert frame.done + frame.diverged == frame.runs
    assert frame.tokens_done <= frame.tokens


def test_progress_never_goes_back_but_for_what_was_lost(world, attempts):
    calm = World(plan=world.plan, planted=LAW, failures=Failures.none())
    film = Film(calm, play(calm))
    done = [film.at(t).tokens_done for t in np.linspace(0, film.end_s, 60)]
    assert done == sorted(done) and done[-1] == film.at(0).tokens


def test_a_board_shows_its_own_run_power_and_temperature(world, attempts):
    film = Film(world, attempts)
    a = max((a for a in attempts if a.status == "completed"), key=lambda a: a.window_s)
    t_s = (a.t0_s + a.t1_s) / 2
    frame = film.at(t_s)
    own = [b for b in frame.boards if b.run_id == a.run.run_id]
    assert len(own) == a.run.layout.ranks
    for board in own:
        assert 0 < board.memory_bytes < board.memory_total
        assert 25 < board.celsius < 90 and board.watts > 50


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_columns_stand_below_each_other(
    world, attempts, width
):
    film = Film(world, attempts, follow=followed(attempts))
    lines = text(film.at(film.end_s / 2), width=width)
    assert max(map(len, lines)) <= width
    dots = [[i for i, c in enumerate(line) if c in (DOT, ALARM)] for line in lines]
    columns = {i for row in dots for i in row}
    assert 0 < len(columns) <= width // 20
    assert {row[0] for row in dots if row} == {min(columns)}


def test_a_picture_is_never_higher_than_the_terminal(world, attempts):
    film = Film(world, attempts)
    assert len(text(film.at(film.end_s / 2), width=100, height=9)) <= 9


def test_the_show_ends_with_the_campaign_and_leaves_only_lines(world, attempts, events):
    from rich.console import Console

    from llem.cli._rehearsal import play_on

    clock = iter(np.linspace(0, 10, 5000).tolist())
    out = StringIO()
    console = Console(file=out, width=100, height=30, force_terminal=True, no_color=True)
    film = Film(world, attempts, follow=followed(attempts))
    ended = play_on(
        console, world, film, events, pace=Pace.even(film.until_s, film.until_s), deadline=1e9,
        now=lambda: next(clock), sleep=lambda _s: [next(clock) for _ in range(50)],
    )  # fmt: skip
    assert ended
    assert "REHEARSED" in out.getvalue()


def test_the_show_is_left_when_its_time_is_over(world, attempts, events):
    from rich.console import Console

    from llem.cli._rehearsal import play_on

    console = Console(file=StringIO(), width=100, height=30, force_terminal=True)
    clock = iter(range(100))
    assert not play_on(
        console, world, Film(world, attempts), events, pace=Pace.even(1e9, 1.0), deadline=10.0,
        now=lambda: float(next(clock)), sleep=lambda _s: None,
    )  # fmt: skip


def test_the_show_dwells_on_what_the_followed_run_does_in_passing(attempts):
    follow = followed(attempts)
    own = [a for a in attempts if a.run.run_id == follow]
    until_s = max(a.t1_s for a in attempts) + 1.0
    pace = close_ups(attempts, follow=follow, until_s=until_s, show_s=60.0)
    assert pace.at(0.0) == 0.0 and pace.at(60.0) == pytest.approx(until_s)
    assert pace.screen_s == tuple(sorted(pace.screen_s))
    assert pace.campaign_s == tuple(sorted(pace.campaign_s))
    seen = [pace.when(b.t1_s) - pace.when(b.t0_s) for a in own for b in a.blocks if b.phase]
    assert max(seen) > 1.0
    moments = np.linspace(0, until_s, 50)
    assert [pace.at(pace.when(t)) for t in moments] == pytest.approx(moments.tolist())


def test_every_stage_of_the_followed_run_has_its_bar(world, attempts):
    follow = followed(attempts)
    film = Film(world, attempts, follow=follow)
    a = next(a for a in attempts if a.run.run_id == follow and a.status == "completed")
    moments = [(a.t0_s + a.blocks[0].t0_s) / 2, *((b.t0_s + b.t1_s) / 2 for b in a.blocks),
               (a.t1_s + film.exported_s) / 2]  # fmt: skip
    stages = [film.at(t).run.stage for t in moments]
    assert stages[0].name == "load" and stages[-1].name == "export"
    assert {"load", "steps", "evaluate", "save", "export"} == {s.name for s in stages}
    assert all(0 < s.share < 1 for s in stages)


def test_the_summary_is_a_box_with_the_numbers_of_the_records(world, attempts, events):
    from rich.cells import cell_len

    from llem.cli._rehearsal import below

    event = next(e for e in events if e.kind == "summary")
    rows = dict(event.rows)
    a = next(a for a in attempts if a.run.run_id == event.run_id and a.status == "completed")
    assert rows["loss"].startswith(f"{a.loss:.4f}")
    assert "joules" not in rows and rows["energy"].endswith("J a token")
    for width in (40, 80, 200):
        lines = list(below(event, width))
        assert len({cell_len(line) for line in lines}) == 1 and cell_len(lines[0]) < width


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_line_is_folded_where_the_screen_ends_and_nothing_of_it_is_lost(events, width):
    from llem.cli._rehearsal import line_of, lines_of

    for event in events:
        lines = lines_of(event, width)
        assert max(map(len, lines)) <= width
        assert " ".join(lines).split()[-3:] == line_of(event).split()[-3:]
        assert lines_of(event, 0) == [line_of(event)]


def test_a_box_of_wide_characters_is_aligned():
    from rich.cells import cell_len

    from llem.cli._stage import box

    lines = box([("名前", "大きなモデル"), ("a", "b")], title="要約", width=24)
    assert {cell_len(line) for line in lines} == {cell_len(lines[0])}
    short = box([("名前", "大きなモデル"), ("a", "b")], title="要約", width=15)
    assert {cell_len(line) for line in short} == {15}


def test_what_matters_is_told_however_much_happens_between_two_frames():
    from llem.cli._rehearsal import LINES_A_FRAME, readable
    from llem.rehearsal import Event

    many = [Event(float(i), "x", "line") for i in range(100)]
    many[3] = Event(3.0, "x", "completed", "heading", "summary")
    told = readable(many)
    assert len(told) <= LINES_A_FRAME and many[3] in told and told[-1] is many[-1]


def test_a_hot_board_is_told_without_colours(world, attempts):
    from dataclasses import replace

    film = Film(world, attempts)
    frame = film.at(film.end_s / 2)
    hot = replace(frame.boards[0], run_id="x", celsius=90.0)
    lines = text(replace(frame, boards=(hot, *frame.boards[1:])), width=120)
    assert sum(ALARM in line for line in lines) >= 1
    assert f"{ALARM} " in next(line for line in lines if hot.node in line)


class Writes(StringIO):
    """A terminal's end of the line, that keeps each write."""

    def __init__(self):
        super().__init__()
        self.each = []

    def write(self, text):
        self.each.append(text)
        return super().write(text)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 50)])
def test_a_frame_is_one_write_that_takes_away_what_the_last_one_drew(
    world, attempts, events, width, height
):
    from rich.console import Console

    from llem.cli._rehearsal import play_on

    out = Writes()
    console = Console(file=out, width=width, height=height, force_terminal=True)
    film = Film(world, attempts, follow=followed(attempts))
    frames = 30
    clock = iter(np.linspace(0, 1, frames).tolist())
    sleeps = []
    play_on(
        console, world, film, events, pace=Pace.even(film.until_s, film.until_s), deadline=1e9,
        now=lambda: next(clock, 1.0), sleep=sleeps.append,
    )  # fmt: skip
    text = "".join(out.each)
    assert text.index("\x1b[?25l") < text.index("campaign  ") and text.count("\x1b[?25h") == 1
    pictures = [part for part in out.each if "campaign  " in part]
    # each of them whole, and no second write to any; the last is drawn again before it goes
    assert len(pictures) == len(sleeps) + 2
    drawn = 0
    for picture in pictures[:-1]:
        assert picture.count("\x1b[1A") == max(0, drawn - 1)
        assert picture.count("REHEARSED, seed") == 1
        drawn = picture[picture.rindex("campaign  ") :].count("\n") + 1
        assert drawn <= height
    # nothing of the picture is left when it is over
    before, after = pictures[-1].split("campaign  ")
    assert before.count("\x1b[1A") == drawn - 1
    assert after.count("\x1b[1A\x1b[2K") == drawn


def test_without_colours_nothing_is_coloured(world, attempts, events, monkeypatch):
    import re

    from rich.console import Console

    from llem.cli._rehearsal import play_on

    monkeypatch.setenv("NO_COLOR", "1")
    out = StringIO()
    console = Console(file=out, width=100, height=30, force_terminal=True, highlight=False)
    film = Film(world, attempts)
    clock = iter(np.linspace(0, 1, 12).tolist())
    play_on(
        console, world, film, events, pace=Pace.even(film.until_s, film.until_s), deadline=1e9,
        now=lambda: next(clock, 1.0), sleep=lambda _s: None,
    )  # fmt: skip
    codes = set(re.findall(r"\x1b\[([0-9;]*)m", out.getvalue()))
    assert codes <= {"", "0", "1", "2"}  # bold and dim alone


def test_a_narrow_terminal_has_short_stamps(events):
    from llem.cli._rehearsal import line_of

    event = next(e for e in events if e.kind == "step")
    time_of_day = line_of(event)[12:20]
    assert line_of(event, brief=True) == f"[{time_of_day}] {event.run_id}: {event.text}"
    trouble = next(e for e in events if e.level == "error")
    assert " ERROR " in line_of(trouble, brief=True)


def test_wide_characters_count_as_two_columns():
    from rich.cells import cell_len

    from llem.cli._stage import bar

    for words in ("データセット" * 30, "数 a" * 40):
        assert cell_len(bar("run", 0.5, words, width=79).plain) <= 79


def test_runs_at_work_leave_room_below_them(world, attempts):
    from llem.cli._stage import at_work

    film = Film(world, attempts)
    a = max(attempts, key=lambda a: a.window_s)
    frame = film.at((a.blocks[0].t0_s + a.t1_s) / 2)
    whole = at_work([frame.run, frame.run], frame.boards, width=130, height=99)
    assert len(whole) == 2 * 4 + 4  # of each run four rows, of each node one
    assert [line.plain for line in at_work([frame.run] * 2, frame.boards, width=130, height=9)] == [
        line.plain for line in whole[:9]
    ]
