"""The report is one page that needs nothing beside it and hides nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llem.report import write_report

from .campaigns import PLAN, fit_json, observations

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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = observations()
    folder = tmp_path_factory.mktemp("report")
    return write_report(folder, observations=rows, fit=fit_json(rows), plan=PLAN, title="<b>&")


def test_the_page_is_whole_and_refers_to_nothing_outside(page: Path) -> None:
    text = page.read_text()
    parser = Balance()
    parser.feed(text)
    assert parser.open == []
    assert len(parser.references) == 8
    assert all(ref.startswith("data:image/svg+xml;base64,") for ref in parser.references)
    assert "url(" not in text
    assert "@import" not in text


def test_each_plot_lies_beside_the_page_as_png(page: Path) -> None:
    files = sorted(p.name for p in (page.parent / "plots").iterdir())
    assert files == ["energy.png", "loss.png", "optimum.png", "residuals.png"]
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


def test_the_same_data_give_the_same_page(page: Path, tmp_path: Path) -> None:
    rows = observations()
    again = write_report(tmp_path, observations=rows, fit=fit_json(rows), plan=PLAN, title="<b>&")
    assert again.read_text() == page.read_text()


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
