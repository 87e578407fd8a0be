"""The law that a rehearsal plants."""

import math

import pytest

from llem.errors import InputError
from llem.rehearsal import planted, planted_for
from llem.rehearsal.planted import PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_law_is_planted_by_its_name(name):
    found = planted(name)
    assert found.name == name
    assert found.at(1e9, 2e10) == pytest.approx(
        found.params["E"]
        + found.params["A"] / 1e9 ** found.params["alpha"]
        + found.params["B"] / 2e10 ** found.params["beta"]
    )


def test_its_text_is_read_again_as_the_same_law():
    found = planted("E=1.7,A=400,B=410,alpha=.34,beta=.28")
    assert planted(found.text).params == found.params
    assert found.text == "chinchilla:E=1.7,A=400,B=410,alpha=0.34,beta=0.28"


def test_another_law_stands_before_its_parameters():
    found = planted("chinchilla_tied:E=1.9,A=500,B=1500,alpha=.35")
    assert found.law.name == "chinchilla_tied"


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(InputError) as caught:
        planted("E=1,A=two,gamma=3,alpha=-1")
    told = str(caught.value)
    for words in ("gamma", "'two' is no number", "-1 is not above 0", "also needs B, beta"):
        assert words in told


def test_a_name_that_is_nearly_right_is_recognised():
    with pytest.raises(InputError, match="did you mean 'chinchilla'"):
        planted("chinchila")


def test_models_that_chinchilla_describes_get_chinchilla(gpu_plan):
    assert planted_for(list(gpu_plan.runs)).name == "chinchilla"


def test_models_too_small_for_it_get_its_exponents_and_losses_they_can_have(laptop_plan):
    runs = list(laptop_plan.runs)
    assert planted("chinchilla").loss(runs[0]) > math.log(256)  # worse than guessing
    found = planted_for(runs)
    assert found.params["alpha"] == planted("chinchilla").params["alpha"]
    losses = [found.loss(run) for run in runs]
    assert found.params["E"] < min(losses) and max(losses) < math.log(256)
