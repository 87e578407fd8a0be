"""A user's own settings of DeepSpeed: checked where the campaign is read, merged where it runs."""

import pytest

from llem.campaign import campaign_from
from llem.campaign.deepspeed import changing_results
from llem.campaign.merging import merged
from llem.errors import InputError


def campaign(**deepspeed):
    return campaign_from(
        {"name": "a", "target": "1e20 FLOP", "training": {"deepspeed": deepspeed}},
    )


def test_settings_of_zero_are_taken_as_they_are():
    settings = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 1e7}}
    assert campaign(**settings).training.deepspeed == settings


def test_every_fault_is_told_at_once_with_its_key_and_what_to_do():
    with pytest.raises(InputError) as caught:
        campaign(
            train_batch_size=64,
            gradient_cliping=1.0,
            fp16={"enabled": True},
            zero_optimization={"stage": 2, "overlap_com": True, "colour": "red"},
        )
    told = {fault.path.removeprefix("training.deepspeed."): fault for fault in caught.value.faults}
    assert set(told) == {
        "train_batch_size", "gradient_cliping", "fp16", "zero_optimization.stage",
        "zero_optimization.overlap_com", "zero_optimization.colour",
    }  # fmt: skip
    assert told["train_batch_size"].hint == "set training.batch_tokens"
    assert told["zero_optimization.stage"].hint == "set layout.zero_stage"
    assert told["fp16"].hint == "set training.precision"
    assert told["gradient_cliping"].hint == "did you mean 'gradient_clipping'?"
    assert told["zero_optimization.overlap_com"].hint == "did you mean 'overlap_comm'?"
    assert told["zero_optimization.colour"].hint.startswith("known keys: allgather_bucket_size")


def test_a_section_that_is_no_mapping_is_told():
    with pytest.raises(InputError, match="expected a mapping"):
        campaign(zero_optimization=2)


def test_only_what_rounds_or_sends_otherwise_changes_results():
    settings = {
        "wall_clock_breakdown": True,
        "prescale_gradients": True,
        "zero_optimization": {"overlap_comm": True, "zero_quantized_gradients": True},
    }
    assert changing_results(settings) == {
        "prescale_gradients": True,
        "zero_optimization.zero_quantized_gradients": True,
    }


def test_settings_lie_over_what_is_generated_key_by_key():
    generated = {"a": 1, "zero_optimization": {"stage": 1, "overlap_comm": False}}
    assert merged(generated, {"b": 2, "zero_optimization": {"overlap_comm": True}}) == {
        "a": 1, "b": 2, "zero_optimization": {"stage": 1, "overlap_comm": True},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"parametrisation": "mup"}, "needs `base_width` and the `learning_rate`"),
        ({"base_width": 64}, "goes with parametrisation mup"),
        ({"branch_at": [0.5], "schedule": "cosine"}, "goes with schedule wsd"),
        ({"optimiser": "lion"}, "'lion' is not one of 'adamw' or 'muon'"),
        (
            {"parametrisation": "mup", "base_width": 8, "learning_rate": 0.01, "optimiser": "muon"},
            "mup is of adamw",
        ),
    ],
)
def test_options_that_do_not_go_together_are_told(training, told):
    with pytest.raises(InputError, match=told):
        campaign_from({"name": "a", "target": "1e20 FLOP", "training": training})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"layout": {"sharding": "fsdp2", "zero_stage": 2}}, "fsdp2 shards everything"),
        ({"layout": {"compile": True, "zero_stage": 3}}, "compile does not go with zero_stage 3"),
        (
            {"layout": {"zero_stage": 1}, "training": {"optimiser": "muon"}},
            "muon needs each matrix whole",
        ),
        (
            {"layout": {"sharding": "fsdp2"}, "training": {"optimiser": "muon"}},
            "muon needs each matrix whole",
        ),
        (
            {"model": {"class": "m:N", "size": "w", "values": [1]},
             "training": {"optimiser": "muon"}},
            "made for the llama family",
        ),
        (
            {"model": {"class": "m:N", "size": "w", "values": [1]}, "data": {"dataset": "m:D"},
             "training": {"z_loss": 1e-4}},
            "the loss is your own",
        ),
    ],
)  # fmt: skip
def test_layouts_and_models_that_an_option_does_not_suit_are_told(values, told):
    with pytest.raises(InputError, match=told):
        campaign_from({"name": "a", "target": "1e20 FLOP", **values})


def test_places_in_a_run_are_parts_of_it_or_tokens():
    training = {"evaluate_at": [0.25, "10M"], "branch_at": [0.5]}
    found = campaign_from({"name": "a", "target": "1e20 FLOP", "training": training}).training
    assert found.evaluate_at == (0.25, 10_000_000)
    assert found.branch_at == (0.5,)
