"""The recipe's rules at points that their sources name, and what rounding does to them."""

import math
from dataclasses import fields

import pytest

from llem.campaign import Recipe
from llem.campaign.architecture import Decoder
from llem.campaign.campaign import Training
from llem.planning.recipe import RULES, asked_of, recipe_for

MODEL = Decoder(layers=12, width=768, heads=12, mlp_width=2048, vocabulary=32000, context=2048)
N = MODEL.params_nonembedding


def recipe(rule, tokens=3e9, **choice):
    return recipe_for(MODEL, tokens, Training(rule=rule, **choice))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tokens", [1e6, 1e8, 1e10, 1e13])
def test_a_batch_is_a_power_of_two_of_sequences_and_the_rounding_is_known(rule, tokens):
    made = recipe(rule, tokens)
    sequences = made.batch_tokens // MODEL.context
    assert sequences & (sequences - 1) == 0
    asked = asked_of(MODEL, tokens, Training(rule=rule), batch_tokens=made.batch_tokens)
    if asked.batch_tokens >= MODEL.context and tokens / asked.batch_tokens >= 64:
        assert 2**-0.5 <= made.batch_tokens / asked.batch_tokens <= 2**0.5
    assert made.learning_rate <= min(0.02, 1.001 * asked.learning_rate)
    assert 0 <= made.warmup_steps < tokens / made.batch_tokens


def test_steplaw_is_eq_1_of_arxiv_2503_04715():
    made = recipe("steplaw")
    assert made.learning_rate == pytest.approx(1.79 * N**-0.713 * 3e9**0.307, rel=1e-3)
    asked = asked_of(MODEL, 3e9, Training(rule="steplaw"), batch_tokens=made.batch_tokens)
    assert asked.batch_tokens == pytest.approx(0.58 * 3e9**0.571)


def test_olmo_scales_from_108_million_parameters_and_warms_up_over_n_tokens():
    made = recipe("olmo")
    assert made.learning_rate == pytest.approx(0.00235 * (N / 108e6) ** (-1 / 3), rel=1e-3)
    assert made.beta2 == 0.99
    assert made.warmup_steps == math.ceil(N / made.batch_tokens)
    assert recipe("olmo", batch_tokens=2**19).beta2 == 0.95


def test_marin_halves_the_batch_for_the_highest_rate_and_sets_beta2_by_it():
    made = recipe("marin", 1e12)
    sequences = made.batch_tokens / MODEL.context
    assert made.learning_rate == pytest.approx(min(0.01, 0.33 * sequences**0.5 / 768), rel=1e-3)
    assert made.beta2 == pytest.approx(max(0.95, 0.98 ** (sequences / 128)), rel=1e-4)
    assert recipe("marin", 1e8).batch_tokens == 8 * MODEL.context


def test_nanochat_scales_batch_by_tokens_and_rate_by_the_root_of_the_batch():
    small, large = recipe("nanochat", 1.155e9), recipe("nanochat", 1.155e9 * 2 ** (1 / 0.383))
    assert (small.batch_tokens, large.batch_tokens) == (2**19, 2**20)
    assert large.learning_rate / small.learning_rate == pytest.approx(2**0.5, rel=1e-3)


def test_what_the_user_fixes_stays():
    made = recipe("olmo", beta2=0.9, warmup_fraction=0.1, learning_rate=0.03, batch_tokens=4096)
    assert (made.beta2, made.learning_rate, made.batch_tokens) == (0.9, 0.03, 4096)
    assert made.warmup_steps == math.ceil(0.1 * (3e9 // 4096))
    assert made.rule == "user"


def test_what_the_user_names_reaches_the_run():
    """Every choice of the same name as a field of a recipe, none left at its default."""
    named = {
        "schedule": "cosine", "decay_fraction": 0.4, "weight_decay": 0.2, "clip_norm": 2.0,
        "precision": "fp32", "z_loss": 1e-4, "beta2": 0.9, "parametrisation": "mup",
        "base_width": 64, "learning_rate": 0.01, "batch_tokens": 8 * 2048,
    }  # fmt: skip
    shared = set(Training.model_fields) & {field.name for field in fields(Recipe)}
    assert shared - {"rule", "optimiser"} == set(named)
    made = recipe("small", **named)
    assert {name: getattr(made, name) for name in named} == named
    assert recipe("small", optimiser="muon").optimiser == "muon"
