"""The page of a study's plan: whole, escaped, without a word of trainings, and quick."""

import re
from xml.etree import ElementTree

import pytest

from llem.campaign.load import campaign_from
from llem.pipeline import plan_study
from llem.pipeline.study.plan import draw_study

from ..test_page import Balance

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
}
STUDY = {
    "name": "serving",
    "workload": "inference",
    "models": {"large": {"config": CONFIG}},
    "options": {"precision": "bf16"},
    "prompts": {"synthetic": {"input_tokens": 512, "output_tokens": 128, "count": 64}},
    "sweep": {
        "grid": {"options.tensor_parallel": [1, 4], "options.batch_size": [1, 8, 64]},
        "list": [{"options.tensor_parallel": 4, "options.batch_size": 8}],
        "exclude": [{"when": {"options.batch_size": 64}, "reason": "<b>slow</b>"}],
    },
    "cycles": 3,
    "block": 2,
    "order": "reverse",
    "site": {
        "name": "test", "executor": "slurm", "nodes": 4, "gpus_per_node": 4,
        "gpu": {"name": "A100-80GB"},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    return plan_study(campaign_from(STUDY), out="nowhere", write=False).plan


@pytest.fixture(scope="module")
def page(plan):
    return draw_study(plan)[0]


def words_of(page):
    """What a reader sees."""
    text = re.sub(r"<style>.*?</style>|<title>.*?</title>|<[^>]*>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", text.replace("\u00a0", " ").replace("\u202f", " "))


def test_a_page_is_whole_and_refers_to_nothing(page):
    parser = Balance()
    parser.feed(page)
    assert (parser.open, parser.references) == ([], [])
    assert "url(" not in page and "<script" not in page and "<b>slow" not in page


def test_it_says_what_is_served_and_what_is_not(plan, page):
    words = words_of(page)

    assert "2 deployments of models of 70.6 G parameters, in 3 cycles: 6 runs" in words
    for some in plan.runs.replicates:
        assert some.run.deployment.deployment_id in words
    assert "&lt;b&gt;slow&lt;/b&gt; a rule of the file" in words
    assert "more memory than a device has" in words and "needs about 14" in words
    assert "The same under other words" in words


def test_no_word_of_trainings_is_in_it(page):
    words = words_of(page).lower()

    for word in ("train", "zero", "micro-step", "checkpoint", "seed", "loss", "flop a run"):
        assert word not in words


def test_it_says_how_far_figures_may_be_off_and_what_they_rest_on(plan, page):
    words = words_of(page)

    assert "device time" in words and "×/÷ 2.01" in words
    assert "prior: data sheets and public measurements" in words


def test_runs_of_an_element_are_drawn_in_their_order(plan, page):
    figure = re.search(r'id="figure-order".*?(<svg.*?</svg>)', page, flags=re.DOTALL)
    bars = [
        mark
        for mark in ElementTree.fromstring(figure[1]).iter()
        if "bar" in (mark.get("class") or "")
    ]

    told = [next(iter(mark)).text for mark in bars]
    assert [re.search(r"batch_size=(\d+).*cycle (\d)", text).groups() for text in told] == [
        ("1", "0"), ("8", "0"), ("8", "1"), ("1", "1"), ("1", "2"), ("8", "2"),
    ]  # fmt: skip


def test_the_timeline_has_the_start_of_the_backend_in_it(plan):
    _, times = draw_study(plan)

    taken = sum(run.predicted.duration_s for run in plan.runs)
    assert times.end_s == pytest.approx(taken + plan.laws["transformers"].start_s
                                        + plan.site.startup_s)  # fmt: skip
