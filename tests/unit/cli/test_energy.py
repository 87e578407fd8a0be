"""`llem energy`: tables, a trace that fits its terminal, and pictures."""

from __future__ import annotations

import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from llem.cli import main
from llem.cli._trace import ceiling, terminal, trace_lines
from llem.records import node_writer, samples_table
from llem.results import PowerTraces, Trace

SVG = "{http://www.w3.org/2000/svg}"


def trace(number=0, power_w=lambda s: 300 + 200 * math.sin(s), seconds=60.0, **more):
    edges = np.linspace(0, seconds, 301)
    watts = np.array([power_w(s) for s in edges[:-1]])
    values = {"uuid": f"GPU-{number:08x}-1111-2222-3333-444455556666", "name": "NVIDIA H100",
              "node": "n0", "domain": "gpu", "quality": "counter", "peak_w": 500.0,
              "idle_w": 70.0} | more  # fmt: skip
    return Trace(edges_s=edges, power_w=watts, **values)


def traces(count=1, seconds=60.0, spans=(), **more):
    every = tuple(trace(i, seconds=seconds, **more) for i in range(count))
    return PowerTraces(
        traces=every, spans=spans, windows=((0.0, seconds),), duration_s=seconds, began_s=0.0
    )


@pytest.mark.parametrize("width", [80, 120, 200])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 40])
def test_the_trace_fits_its_terminal_and_names_its_axes(width, count):
    lines = trace_lines(traces(count), width=width)
    assert max(map(len, lines)) <= width and max(map(len, lines)) >= width - 3
    text = "\n".join(lines)
    assert "500 W ┤" in text and "0 W └" in text and "60 s" in text and "idle 70 W" in text
    assert ("24 devices more" in text) == (count == 40)


def test_bars_are_as_high_as_the_power_and_gaps_are_no_zeros():
    flat = trace_lines(traces(power_w=lambda s: math.nan if s < 15 else 250 if s < 30 else 500),
                       width=91)  # fmt: skip
    bars = [line.partition("┤")[2].ljust(80) for line in flat if "┤" in line]
    assert len(bars) == 8
    column = lambda i: "".join(bar[i] for bar in bars)  # noqa: E731
    assert column(10) == "       ·"
    assert column(30) == "    ████" and column(70) == "████████"


def test_colours_come_with_a_terminal_alone_and_never_with_no_color():
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    spans = (("training", 0.0, 30.0), ("evaluation", 30.0, 60.0))
    assert terminal(Terminal(), {})[1] and not terminal(Terminal(), {"NO_COLOR": "1"})[1]
    assert terminal(io.TextIOWrapper(io.BytesIO(), "ascii"), {}) == (80, False, False)
    plain = trace_lines(traces(spans=spans), width=81)
    coloured = trace_lines(traces(spans=spans), width=81, colour=True)
    assert "\x1b[" in "".join(coloured)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in coloured] == plain
    assert "a training, b evaluation" in plain[-1]
    row = plain[-2].split()[1]
    assert row == "a" * (len(row) // 2) + "b" * (len(row) - len(row) // 2)


def test_where_the_encoding_has_no_blocks_it_is_drawn_in_ascii():
    lines = trace_lines(traces(2), width=80, unicode=False)
    assert all(line.isascii() for line in lines)


@pytest.mark.parametrize(("watts", "top"), [(406, 500), (645, 700), (1000, 1000), (23, 25), (0, 1)])
def test_the_axis_ends_at_a_round_number(watts, top):
    assert ceiling(watts) == pytest.approx(top)


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A minute of two GPUs with an idle baseline, phases and a window."""
    path = tmp_path / "run.h5"
    device = {"domain": "gpu", "contains": [], "counter": True, "source": "nvml",
              "quality": "counter", "name": "A <GPU> & more"}  # fmt: skip
    start = 10**15
    at = lambda s: start + round(s * 1e9)  # noqa: E731
    with node_writer(path, meta={"boot_id": "b", "host": "n0"},
                     devices={"GPU-0": device, "GPU-1": device}) as writer:  # fmt: skip
        events = (("begin", "process", 5), ("phase", "process: training", 6),
                  ("phase-end", "process: training", 40), ("end", "process", 55))  # fmt: skip
        for code, text, s in events:
            writer.event(code, text, t_ns=at(s))
        for number in (0, 1):
            writer.append("baseline", (f"GPU-{number}".encode(), 60e3, 100, 0.1, at(0), at(0), -1))
            for i in range(601):
                row = (at(i / 10), 0, 250e3 * i / 10, 250e3, 40, 90, 0, 0, 0)
                writer.append(samples_table(f"GPU-{number}"), row)
    monkeypatch.chdir(tmp_path)
    return path


def test_the_tables_tell_devices_phases_and_the_whole_and_the_trace_follows(record, capsys):
    assert main(["energy", "run.h5"]) == 0
    out = capsys.readouterr().out
    assert "25 kJ in 50 s, mean 500 W (counter)" in out
    assert re.search(r"training +17 kJ +68.0 % +500 W +34 s", out)
    assert "250 W ┤" in out and "\x1b" not in out and max(map(len, out.splitlines())) <= 80


def test_json_keeps_its_contract_and_tells_phases(record, capsys):
    assert main(["energy", "run.h5", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["energy_j"] == pytest.approx(25000) and told["duration_s"] == pytest.approx(50)
    assert {"uuid", "domain", "source", "quality", "energy_j", "duration_s", "coverage",
            "reason"} <= set(told["devices"][0])  # fmt: skip
    assert [p["phase"] for p in told["phases"]] == ["rest", "training"]


def test_the_plot_is_a_picture_with_devices_phases_window_and_idle_power(record, capsys):
    assert main(["energy", "run.h5", "--plot", "power.svg"]) == 0
    root = ElementTree.parse("power.svg").getroot()
    words = " ".join(e.text or "" for e in root.iter(f"{SVG}text"))
    assert "run.h5: 25 kJ in 50 s" in words and words.count("A <GPU> & more") == 2
    assert "training 17 kJ" in words and "idle 60 W" in words and "60 s" in words
    classes = [e.get("class", "") for e in root.iter()]
    assert classes.count("window") == 2 and classes.count("area p0") == 2
    assert "idle" in classes and "var(" not in Path("power.svg").read_text()
    areas = list(root.iter(f"{SVG}polygon"))
    xs = [float(p.split(",")[0]) for a in areas for p in a.get("points").split()]
    assert min(xs) >= 58 and max(xs) <= 732


def test_a_page_and_a_png_show_the_same(record, capsys):
    pytest.importorskip("matplotlib")
    for name in ("power.html", "power.png"):
        assert main(["energy", "run.h5", "--plot", name]) == 0
    page = Path("power.html").read_text()
    assert "<svg" in page and "http://" not in page.replace("http://www.w3.org", "")
    assert Path("power.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", ["power.pdf", "nowhere/power.svg", "power"])
def test_a_plot_that_cannot_be_is_refused_before_anything_is_read(record, capsys, name):
    assert main(["energy", "run.h5", "--plot", name]) == 2
    assert "--plot" in capsys.readouterr().err
