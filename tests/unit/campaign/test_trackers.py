"""Trackers in the campaign file: names, options, and no secrets."""

import pytest

from llem.campaign import campaign_from, campaign_to_dict
from llem.campaign.trackers import spec_of
from llem.errors import InputError

BASE = {"name": "x", "target": "1e12 FLOP", "budget": "1e11 FLOP"}


def faults(*trackers):
    with pytest.raises(InputError) as error:
        campaign_from({**BASE, "trackers": list(trackers)})
    return [str(fault) for fault in error.value.faults]


def test_a_name_alone_options_and_a_class_of_ones_own():
    campaign = campaign_from(
        {
            **BASE,
            "trackers": [
                "tensorboard",
                {"wandb": {"project": "p", "tags": ["a"]}},
                {"mlflow": None},
                "mine.shown:Tracker",
                {"class": "mine.shown:Tracker", "arguments": {"port": 3}},
            ],
        }
    )
    assert [spec_of(tracker) for tracker in campaign.trackers or ()] == [
        {"tensorboard": {}},
        {"wandb": {"project": "p", "tags": ["a"]}},
        {"mlflow": {}},
        {"class": "mine.shown:Tracker"},
        {"class": "mine.shown:Tracker", "arguments": {"port": 3}},
    ]
    assert campaign_from(campaign_to_dict(campaign)) == campaign


def test_a_campaign_without_trackers_is_written_as_it_always_was():
    assert "trackers" not in campaign_to_dict(campaign_from(BASE))


def test_every_fault_is_told_at_once_with_what_was_meant():
    found = faults("tensorbord", {"wandb": {"projct": "p"}}, {"wandb": {}, "mlflow": {}}, {})
    assert found == [
        "trackers.0.tensorbord: unknown key (did you mean 'tensorboard'?)",
        "trackers.1.wandb.projct: unknown key (did you mean 'project'?)",
        "trackers.2: name one of tensorboard, wandb, mlflow or a class; this names 2",
        "trackers.3: name one of tensorboard, wandb, mlflow or a class; this names 0",
    ]


@pytest.mark.parametrize(
    "tracker",
    [
        {"wandb": {"api_key": "local-abc"}},
        {"mlflow": {"token": "abc"}},
        {"mlflow": {"tracking_uri": "https://me:pw-abc@host/"}},
    ],
)
def test_a_secret_is_refused_and_not_repeated(tracker):
    (fault,) = faults(tracker)
    assert "environment" in fault
    assert "abc" not in fault
