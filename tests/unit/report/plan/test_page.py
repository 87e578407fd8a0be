"""The page of a plan: whole, self-contained, escaped, and no larger for many runs."""

import copy
import json
import math
import re
import time
from xml.etree import ElementTree

import pytest

from llem.report.plan import render_plan_page, timeline
from llem.report.plan.cells import cells_of
from llem.report.promise import factor, factor_text

from ..test_page import Balance
from .plans import page_of, plan_of

NAMES = ("laptop", "chained", "own")
HOSTILE = '</title><script>alert("&")</script>\x00\x0b\ud800'


@pytest.fixture(params=NAMES)
def page(request):
    return render_plan_page(page_of(request.param))


def words_of(page):
    """What a reader sees."""
    text = re.sub(r"<style>.*?</style>|<title>.*?</title>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text.replace("\u00a0", " ").replace("\u202f", " "))


def test_a_page_is_whole_and_refers_to_nothing(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.references == []
    assert "url(" not in page and "@import" not in page and "<script" not in page


def test_waves_are_told_where_there_are_several():
    plan = page_of("laptop")
    assert "Wave after wave" not in words_of(render_plan_page(plan))
    plan["campaign"]["waves"] = 3
    grid = {"number": 1, "kind": "isoflop-grid", "value": 1e12, "runs": 12, "digest": "",
            "observed": 0, "pending": 0}  # fmt: skip
    plan["waves"] = [grid, {**grid, "number": 2, "runs": 34, "observed": 11, "pending": 1}]
    words = words_of(render_plan_page(plan))
    assert "2 of 3 34 1e12 FLOP what 11 runs have shown, 1 under way" in words
    assert "3 of 3 planned when the one before has ended" in words


def test_every_picture_is_well_formed_and_within_its_frame(page):
    pictures = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(pictures) == 3
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        width, height = map(float, root.get("viewBox").split()[2:])
        for mark in root.iter():
            for name, most in (("cx", width), ("cy", height), ("x", width), ("y", height)):
                value = mark.get(name)
                assert value is None or -1 <= float(value) <= most + 1, mark.attrib


def test_no_number_is_shown_as_nan_or_none(page):
    assert not re.search(r"\b(nan|None|inf|n/a)\b", words_of(page))


def test_the_question_comes_first_then_warnings_the_promise_and_the_pictures(page):
    parts = ['class="lead"', "What it promises", 'id="figure-design"', 'id="figure-cost"',
             'id="figure-timeline"', "How runs are trained", "How to go on",
             "Provenance"]  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)


def test_plan_json_and_the_plan_by_cell_give_the_same_page():
    for name in NAMES:
        values = json.loads(json.dumps(plan_of(name).to_dict()))
        assert render_plan_page(values) == render_plan_page(page_of(name))


def test_a_point_for_each_cell_and_a_bar_for_each():
    for name in NAMES:
        page, cells = render_plan_page(page_of(name)), cells_of(page_of(name))
        assert page.count('class="dot l') == len(cells) == len(plan_of(name).runs.replicates)
        assert page.count('class="bar l') == len(cells)


def test_a_factor_that_promises_nothing_is_not_told_in_digits():
    assert factor_text(750.0) == "more than 1000"
    assert factor_text(math.log(1.451)) == "1.45"


def test_the_promise_is_told_as_a_factor():
    values = page_of("laptop")
    words = words_of(render_plan_page(values))
    design = values["design"]
    # Before anything is measured: Student's quantile for four degrees of freedom.
    noise = 2.776 * design["predicted_se_log_params"]
    law = 1.960 * design["law_error_log_params"]
    assert factor(design) == pytest.approx(math.exp(math.hypot(noise, law)), rel=0.01)
    assert f"{factor(design):.2f}" in words
    for share in ("half the budget", "this budget", "twice the budget"):
        assert share in words


def test_a_far_target_is_pointed_at_and_a_near_one_drawn():
    assert "times the largest run" in render_plan_page(page_of("chained"))
    near = render_plan_page(page_of("laptop"))
    assert "goal thick" in near and "times the largest run" not in near


def test_a_chain_is_told_and_its_jobs_are_marked():
    page = render_plan_page(page_of("chained"))
    assert "jobs in a row" in page and 'class="cut"' in page
    assert "How long jobs wait in the queue is not known" in words_of(page)


def test_what_was_left_out_and_what_is_warned_about_is_told():
    values = page_of("laptop")
    values["dropped"] = [{"level": 0, "params": 5e4, "reason": "only <3> steps"}] * 2
    values["warnings"] = ["mind the <gap>"]
    page = render_plan_page(values)
    assert "50 k parameters" in page
    assert "only &lt;3&gt; steps" in page
    assert "mind the &lt;gap&gt;" in page


def test_a_plan_without_hours_or_promise_is_told_in_flops():
    values = copy.deepcopy(page_of("laptop"))
    for cell in values["cells"]:
        cell["predicted"] = dict.fromkeys(cell["predicted"])
    values["totals"] = {**values["totals"], "gpu_hours": None, "energy_j": None}
    values["design"] = {k: v for k, v in values["design"].items() if not k.startswith("predicted")}
    page = render_plan_page(values)
    words = words_of(page)
    assert "The cost of each cell in FLOPs" in words
    assert "What it promises" not in words and "within a factor" not in words
    assert "when they would end" in words
    assert not re.search(r"\b(nan|None|inf)\b", words)


def test_hostile_names_stay_text():
    values = json.loads(json.dumps(plan_of("own").to_dict()))
    values["campaign"]["name"] = HOSTILE
    values["site"]["name"] = values["site"]["device"]["name"] = HOSTILE
    for array in values["arrays"]:
        array["name"] = HOSTILE
    for run in values["runs"]:
        run["model"]["class_path"] = HOSTILE
    page = render_plan_page(values)
    assert "<script" not in page
    assert not set("\x00\x0b\ud800") & set(page)
    assert page.count("</title>") == 1 + len(
        re.findall(r"<(?:circle|rect|polygon)[^>]*><title>", page)
    )
    for picture in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(picture)


def test_a_timeline_that_is_at_hand_changes_nothing():
    values = page_of("chained")
    assert render_plan_page(values, times=timeline(values)) == render_plan_page(values)


def test_ten_thousand_runs_are_told_by_cell_in_little_room_and_time():
    values = page_of("large")
    assert sum(c.seeds for c in cells_of(values)) == 10000
    render_plan_page(page_of("laptop"))
    begun = time.process_time()
    page = render_plan_page(values)
    took = time.process_time() - begun
    assert len(page) < 250_000
    # As a share of what this machine does otherwise: writing the same plan's runs as JSON.
    begun = time.process_time()
    json.dumps([run.to_dict() for run in plan_of("large").runs])
    assert took < time.process_time() - begun
