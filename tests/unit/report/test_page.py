"""The report is one page that needs nothing beside it and hides nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from llem.report import write_report
from llem.report.page import draw_fit, render_page
from llem.report.plots import make_plots
from llem.report.runs import gather

from .campaigns import PLAN, observations

PLOTS = (
    "cloud",
    "energy",
    "left-out",
    "loss",
    "optimum",
    "profiles",
    "residuals",
    "sensitivity",
)
VOID = {"meta", "source", "img", "br", "link"}


class Balance(HTMLParser):
    """Checks that every element is closed in order; gathers what the page refers to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "srcset", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside(page: Path) -> None:
    text = page.read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.references) == 2 * len(PLOTS)
    assert all(ref.startswith("data:image/svg+xml;base64,") for ref in parser.references)
    assert "url(" not in text
    assert "@import" not in text


def test_each_plot_lies_beside_the_page_as_png(page: Path) -> None:
    files = sorted(p.name for p in (page.parent / "plots").iterdir())
    assert files == [f"{name}.png" for name in PLOTS]
    for name in files:
        assert (page.parent / "plots" / name).read_bytes().startswith(b"\x89PNG")


def test_what_a_user_typed_is_escaped(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert" in text
    assert "<title>&lt;b&gt;&amp;</title>" in text


def test_every_run_is_listed_with_its_status_and_reason(page: Path) -> None:
    text = page.read_text()
    for i in range(24):
        assert f"run-{i:02d}" in text
    assert "loss is NaN at step 412" in text
    assert "1 of 4 ranks missing" in text
    assert "21 completed, 2 diverged, 1 unfinished" in text
    assert "energy: no counter" in text


def test_the_answer_comes_before_warnings_and_warnings_before_plots(page: Path) -> None:
    text = page.read_text().replace("\u00a0", " ")
    places = [text.index(s) for s in ("For 1e18", "Read this first", 'id="plot-loss"', "The law")]
    assert places == sorted(places)


def test_no_number_is_shown_as_nan_or_none(page: Path) -> None:
    words = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)
    assert not re.search(r"\b(nan|None|inf)\b", words)


def test_the_same_data_give_the_same_page(
    page: Path, rows: list[dict[str, Any]], fitted: dict[str, Any]
) -> None:
    again = gather(rows, fitted)
    plots = [p for p in make_plots(again, fitted) if p.name in ("loss", "cloud")]
    text = render_page(again, fitted, PLAN, title="<b>&", plots=plots)
    pictures = re.findall(r'<img src="([^"]+)"', text)
    assert len(pictures) == 2
    assert all(picture in page.read_text() for picture in pictures)

    def words(text: str) -> str:
        return re.sub(r"<figure.*?</figure>", "", text, flags=re.DOTALL).replace("\n", "")

    assert words(text) == words(page.read_text())


def test_the_checklist_is_folded_and_counts_what_is_open(page: Path) -> None:
    text = page.read_text()
    folded = text[text.index("<details>") : text.index("</details>")]
    assert re.search(r"\d+ of \d+ items answered", folded)
    assert "not known: declare training.dataset" in folded
    assert "<h3>Validation</h3>" in folded


def test_every_choice_and_every_way_to_count_has_a_row(page: Path, fit: dict[str, Any]) -> None:
    text = page.read_text()
    for entry in fit["sensitivity"]:
        assert f"<td>{entry['choice']}</td>" in text
    assert "Under other ways to count" in text


def test_figures_far_beyond_the_data_are_marked_and_both_intervals_told(page: Path) -> None:
    text = page.read_text().replace("\u00a0", " ")
    assert "from the parameters alone" in text
    assert "allowing for the law's own error" in text.replace("&#39;", "'")
    row = text[text.index("<tr><td>1e24 FLOP") :].split("</tr>")[0]
    assert row.count('<span class="status"> !</span>') >= 3
    row = text[text.index("<tr><td>1e18 FLOP") :].split("</tr>")[0]
    assert "status" not in row


def test_a_fit_draws_every_plot_into_a_folder_as_png_and_svg(
    tmp_path: Path, rows: list[dict[str, Any]], fit: dict[str, Any]
) -> None:
    fit["profiles"], fit["sensitivity"], fit["frontier"] = {}, [], []
    for optimum in fit["optima"]:
        optimum["cloud"] = {}
    names = ("params", "tokens", "loss", "flops")
    numbers = {n: np.array([float(r[n] or "nan") for r in rows]) for n in names}
    texts = {n: [str(r[n]) for r in rows] for n in ("run_id", "status")}
    files = draw_fit(tmp_path / "plots", numbers=numbers, texts=texts, fit=fit)
    wanted = ("left-out", "loss", "residuals")
    assert sorted(f.name for f in files) == [f"{n}.{e}" for n in wanted for e in ("png", "svg")]
    assert all(f.stat().st_size > 1000 for f in files)


def test_without_a_law_the_page_says_why_and_stale_plots_go(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "optimum.png").write_bytes(b"old")
    page = write_report(
        tmp_path, observations=observations()[:4], fit=None, fit_reason="found 3 points"
    )
    text = page.read_text().replace("\u00a0", " ")
    assert "No law could be fitted: found 3 points" in text
    assert not (tmp_path / "plots" / "optimum.png").exists()
    assert (tmp_path / "plots" / "loss.png").exists()


def test_a_campaign_without_any_result_still_gives_a_page(tmp_path: Path) -> None:
    rows = [{"run_id": "a", "status": "missing", "reason": "never started", "loss": None}]
    text = write_report(tmp_path, observations=rows, fit=None).read_text()
    assert "never started" in text
    assert "<img" not in text
    assert write_report(tmp_path, observations=[], fit=None).exists()


def test_importing_the_package_loads_neither_matplotlib_nor_jinja() -> None:
    code = (
        "import sys, llem.report; from llem.report import summary_lines; "
        "print([m for m in ('matplotlib', 'jinja2', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
