"""What a study may say, and how each fault is told: once, with the path to its key."""

import pytest
import yaml

from llem.campaign import Campaign, campaign_to_dict, load_any_campaign, load_campaign
from llem.campaign.load import campaign_from
from llem.campaign.study.study import Rule, Study
from llem.campaign.study.sweep import matches, sweep
from llem.errors import InputError

from .studies import STUDY, TINY, study_of


def faults_of(call, *args, **keywords):
    with pytest.raises(InputError) as caught:
        call(*args, **keywords)
    return {fault.path: fault for fault in caught.value.faults}


def settings_of(**changed):
    return sweep(study_of(**changed)).settings


def test_the_workload_of_the_file_says_what_is_read(tmp_path):
    place = tmp_path / "campaign.yaml"
    place.write_text(yaml.safe_dump(STUDY))
    assert isinstance(load_any_campaign(place), Study)
    with pytest.raises(InputError, match=r"workload: is inference.*llem.run_study"):
        load_campaign(place)

    place.write_text("{name: a, target: 1e12 FLOP}")
    assert isinstance(load_any_campaign(place), Campaign)


def test_a_study_is_read_back_from_what_plan_json_holds():
    study = study_of(
        arrival={"poisson": 2.0},
        sweep={
            "grid": {"options.precision": [None, "bf16"]},
            "zip": [{"options.batch_size": [1, 2], "options.compile": [True, False]}],
            "list": [{"options.beams": 2}],
            "exclude": [{"when": {"options.beams": 2}, "reason": "slow"}],
        },
    )

    assert campaign_from(campaign_to_dict(study)) == study


@pytest.mark.parametrize(
    ("changed", "path", "word"),
    [
        ({"cycels": 3}, "cycels", "cycles"),
        ({"workload": "inferense"}, "workload", "inference"),
        ({"backend": "transformer"}, "backend.0", "transformers"),
        ({"order": "latin"}, "order", "latin-square"),
        ({"models": {"a": {"confg": TINY}}}, "models.a.confg", "config"),
        ({"prompts": {"synthetics": {}}}, "prompts.synthetics", "synthetic"),
        ({"sweep": {"gird": {}}}, "sweep.gird", "grid"),
    ],
)
def test_a_wrong_word_is_told_with_the_one_that_was_meant(changed, path, word):
    found = faults_of(study_of, **changed)

    assert word in str(found[path])


@pytest.mark.parametrize(
    ("changed", "path", "word"),
    [
        ({"options": {"batchsize": 1}}, "options.batchsize", "did you mean 'batch_size'?"),
        ({"options": {"batch_size": 0}}, "options.batch_size", "below 1"),
        ({"options": {"precision": "fp23"}}, "options.precision", "did you mean 'fp32'?"),
        (
            {"sweep": {"grid": {"options.precison": ["fp32"]}}},
            "sweep.grid.options.precison",
            "did you mean 'precision'?",
        ),
        (
            {"sweep": {"grid": {"batch_size": [1]}}},
            "sweep.grid.batch_size",
            "did you mean 'options.batch_size'?",
        ),
        ({"sweep": {"grid": {"options.batch_size": []}}}, "sweep.grid.options.batch_size", "empty"),
        ({"sweep": {"grid": {"model": ["tony"]}}}, "sweep.grid.model.0", "tiny"),
        (
            {"sweep": {"zip": [{"options.batch_size": [1, 2], "options.beams": [1]}]}},
            "sweep.zip.0",
            "options.batch_size has 2, options.beams has 1",
        ),
        (
            {"sweep": {"grid": {"prompts.jsonl": [["a", "b"]]}}},
            "sweep.grid.prompts.jsonl.0",
            "neither a text nor a number",
        ),
        (
            {"sweep": {"grid": {"arrival": ["quickly"]}}},
            "sweep.arrival",
            "neither batch nor",
        ),
        (
            {"sweep": {"grid": {"prompts.synthetic.count": [0]}}},
            "sweep.prompts.synthetic.count",
            " is below 1",
        ),
        (
            {"sweep": {"list": [{"options.batch_size": "many"}]}},
            "sweep.list.0.options.batch_size",
            "whole number",
        ),
        (
            {"sweep": {"exclude": [{"when": {"options.presicion": 1}, "reason": "x"}]}},
            "sweep.exclude.0.when.options.presicion",
            "precision",
        ),
    ],
)
def test_a_fault_of_what_varies_is_told_once_with_its_path(changed, path, word):
    found = faults_of(settings_of, **changed)

    assert list(found) == [path]
    assert word in str(found[path])


def test_a_wrong_key_in_thousands_of_deployments_is_one_fault():
    numbers = list(range(1, 65))
    grid = {"options.batch_size": numbers, "options.top_k": numbers, "options.presicion": ["fp32"]}

    found = faults_of(settings_of, sweep={"grid": grid})

    assert list(found) == ["sweep.grid.options.presicion"]


def test_every_fault_is_told_at_once():
    found = faults_of(
        settings_of, options={"beans": 2}, sweep={"grid": {"options.batch_size": [0, "x"]}}
    )

    assert list(found) == [
        "options.beans",
        "sweep.grid.options.batch_size.0",
        "sweep.grid.options.batch_size.1",
    ]


def test_a_grid_is_every_combination_and_the_last_key_goes_fastest():
    found = settings_of(
        sweep={"grid": {"options.batch_size": [1, 2], "options.precision": ["fp32", "bf16"]}}
    )

    assert [tuple(s.options.values()) for s in found] == [
        (1, "fp32"), (1, "bf16"), (2, "fp32"), (2, "bf16"),
    ]  # fmt: skip


def test_what_is_zipped_goes_along_together_with_every_point_of_the_grid():
    found = settings_of(
        sweep={
            "grid": {"options.beams": [1, 2]},
            "zip": [{"options.batch_size": [1, 4], "options.compile": [True, False]}],
        }
    )

    assert [(s.options["batch_size"], s.options["compile"]) for s in found] == [
        (1, True), (4, False)] * 2  # fmt: skip


def test_what_is_listed_comes_besides():
    found = settings_of(
        options={"batch_size": 8},
        sweep={"grid": {"options.beams": [1, 2]}, "list": [{"options.compile": True}]},
    )

    assert [s.options for s in found] == [
        {"batch_size": 8, "beams": 1},
        {"batch_size": 8, "beams": 2},
        {"batch_size": 8, "compile": True},
    ]


def test_models_and_backends_are_crossed_with_all_of_it():
    found = settings_of(
        models={"a": {"config": TINY}, "b": {"config": TINY, "seed": 1}},
        backend=["transformers", "vllm"],
        sweep={"grid": {"options.batch_size": [1, 2]}},
    )

    assert len(found) == 8
    assert {(s.model, s.backend) for s in found} == {
        (m, b) for m in ("a", "b") for b in ("transformers", "vllm")
    }


def test_an_option_that_a_backend_lacks_is_left_out_there_and_told():
    found = sweep(
        study_of(
            backend=["transformers", "vllm"], sweep={"grid": {"options.compile": [True, False]}}
        )
    )

    assert [(s.backend, s.options) for s in found.settings] == [
        ("transformers", {"compile": True}),
        ("transformers", {"compile": False}),
        ("vllm", {}),
    ]
    assert found.notes == ("options.compile is not of vllm, and left out there",)


def test_prompts_and_arrival_may_vary():
    found = settings_of(
        sweep={
            "grid": {
                "prompts.synthetic.output_tokens": [4, 8],
                "arrival": ["batch", {"rate": 2.0}],
            }
        }
    )

    assert [(s.prompts.synthetic.output_tokens, s.arrival and s.arrival.rate) for s in found] == [
        (4, None), (4, 2.0), (8, None), (8, 2.0),
    ]  # fmt: skip


def test_another_kind_of_prompts_takes_the_place_of_the_first(tmp_path):
    study = {"prompts": {"jsonl": "a.jsonl", "output_tokens": 4}}

    found = settings_of(**study, sweep={"grid": {"prompts.builtin": ["instructions"]}})

    assert (found[0].prompts.jsonl, found[0].prompts.builtin) == (None, "instructions")


@pytest.mark.parametrize(
    ("when", "values", "expected"),
    [
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": [1, 2]}, {"a": 2}, True),
        ({"a": ">= 8"}, {"a": 8}, True),
        ({"a": "< 8"}, {"a": 8}, False),
        ({"a": "> 8"}, {"a": None}, False),
        ({"a": "!= fp32"}, {"a": "bf16"}, True),
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, False),
    ],
)
def test_a_rule_asks_for_all_of_its_keys(when, values, expected):
    assert matches(Rule(when=when, reason="r"), values) is expected


def test_faults_of_keys_and_of_options_are_told_together():
    found = faults_of(
        study_of, cycels=3, options={"batchsize": 1}, sweep={"grid": {"model": ["tony"]}}
    )

    assert list(found) == ["cycels", "options.batchsize", "sweep.grid.model.0"]


def test_the_file_is_named_with_its_faults(tmp_path):
    place = tmp_path / "study.yaml"
    place.write_text(yaml.safe_dump({**STUDY, "options": {"batchsize": 1}}))

    with pytest.raises(InputError, match=r"study\.yaml: options\.batchsize"):
        load_any_campaign(place)
