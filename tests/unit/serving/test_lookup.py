"""Prompt lookup gives the text that is given without it, in fewer passes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from served import backend_of, columns, cut, ending_with, reference, served

from llem.records import Phase, RequestStatus
from llem.serving.generating.lookup import guessed, right
from llem.training.world import start_world

NONE = frozenset()


@pytest.fixture(scope="module")
def world():
    with start_world() as found:
        yield found


def asked(world, *, prompt=None, output_tokens=24, ngram=2, guesses=5, **options):
    """A request whose prompt repeats itself, so that something is guessed."""
    backend, requests = backend_of(
        world, lengths=[9], output_tokens=output_tokens, prompt_lookup_tokens=guesses,
        prompt_lookup_ngram=ngram, **options,
    )  # fmt: skip
    [one] = requests
    tokens = prompt or [7, 11, 5, 7, 11, 9, 3, 7, 11]
    return backend, [type(one)(number=0, prompt=0, tokens=tokens, output_tokens=output_tokens)]


def greedy(backend, requests, **more):
    return reference(backend.model, requests, do_sample=False, eos_token_id=None, **more)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"guesses": 1},
        {"guesses": 40},
        {"ngram": 1},
        {"ngram": 4},
        {"cache": "static"},
        {"attention": "eager"},
        {"repetition_penalty": 1.3},
        {"config": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4,
                    "n_positions": 512}},
        {"config": {"model_type": "mistral", "sliding_window": 6}},
    ],
)  # fmt: skip
def test_the_text_is_the_likeliest_without_guessing(world, options):
    backend, requests = asked(world, **options)
    more = {k: v for k, v in options.items() if k == "repetition_penalty"}
    found, kept = served(backend, requests)
    assert found == greedy(backend, requests, **more)
    passes = columns(kept)
    assert passes["tokens_out"].sum() == 24
    if not options:
        assert len(passes) < 24  # else nothing was ever guessed right


def test_it_makes_the_passes_that_generate_makes(world):
    """As many, with as many tokens each: those of the model as `generate` calls it."""
    backend, requests = asked(world)
    seen = []
    hook = backend.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found, kept = served(backend, requests)
    own, seen[:] = list(seen), []
    expected = greedy(backend, requests, prompt_lookup_num_tokens=5, max_matching_ngram_size=2)
    hook.remove()
    assert found == expected and own == columns(kept)["tokens_in"].tolist()
    # Of the last pass llem guesses no more than there is room for.
    assert own[:-1] == seen[:-1] and own[-1] <= seen[-1]


def test_a_text_ends_where_the_model_ends_it_among_guesses_too(world):
    backend, requests = asked(world)
    [free], _ = served(backend, requests)
    for end in dict.fromkeys(free):
        ending_with(backend, {end})
        [found], kept = served(backend, requests)
        assert found == cut(free, {end})
        [row] = kept.rows["requests"]
        last = found[-1] == end
        assert row[-1] == (RequestStatus.STOPPED if last else RequestStatus.FINISHED)
        assert columns(kept)["tokens_out"].sum() == row[4] == len(found)


def test_what_is_drawn_is_what_generate_draws_with_the_same_seed(world):
    options = {"sample": True, "temperature": 0.05, "top_k": 30}
    backend, requests = asked(world, **options)
    more = {"do_sample": True, "eos_token_id": None, "temperature": 0.05, "top_k": 30,
            "prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 2}  # fmt: skip
    for seed in (1, 2):
        [found], kept = served(backend, requests, seed=seed)
        [expected] = reference(backend.model, requests, seed=seed, **more)
        sure = 24 - columns(kept)["tokens_out"][-1]  # the last pass has fewer guesses
        assert found[:sure] == expected[:sure] and sure > 12


def test_each_pass_says_what_it_read_kept_and_attended_to(world):
    backend, requests = asked(world)
    [text], kept = served(backend, requests)
    rows = columns(kept)
    assert rows["phase"].tolist() == [Phase.PREFILL] + [Phase.DECODE] * (len(rows) - 1)
    assert (rows["sequences"] == 1).all() and (rows["live"] == 1).all()
    assert (rows["tokens_out"] <= rows["tokens_in"]).all() and rows["tokens_out"].max() > 1
    held = 9 + np.concatenate([[0], np.cumsum(rows["tokens_out"])[:-1]])
    # What stays of a pass: the text before it, and the guesses that were right.
    assert rows["context"].tolist() == (held + rows["tokens_out"] - 1).tolist()
    before = np.concatenate([[0], rows["context"][:-1]])
    pairs = [sum(range(a + 1, a + n + 1)) for a, n in zip(before, rows["tokens_in"], strict=True)]
    assert rows["attended"].tolist() == pairs
    [row] = kept.rows["requests"]
    assert row[4] == len(text) == 24
    assert (row[7], row[8]) == (rows["t1_ns"][0], rows["t1_ns"][-1])


def test_whoever_has_to_leave_keeps_what_was_given(world):
    backend, requests = asked(world)
    left = iter([None, "the queue is closed"])
    [text], kept = served(backend, requests, should_stop=lambda: next(left))
    [row] = kept.rows["requests"]
    assert row[-1] == RequestStatus.LEFT and row[4] == len(text) < 24
    assert len(kept.rows["forwards"]) == 2 and [text] == [greedy(backend, requests)[0][: len(text)]]


def test_a_guess_is_what_followed_the_first_place_of_the_longest_run():
    text = [1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3]
    assert guessed(text, 2, ngram=3, room=9, ends=NONE) == [4, 9]
    assert guessed([9, 2, 7, 3, 2], 3, ngram=2, room=9, ends=NONE) == [7, 3, 2]
    assert guessed(text, 9, ngram=3, room=3, ends=NONE) == [4, 9]  # and one that the pass gives
    assert guessed(text, 9, ngram=3, room=1, ends=NONE) == []
    assert guessed(text, 4, ngram=2, room=9, ends=frozenset({9})) == [4]
    assert guessed([1, 2, 3], 4, ngram=2, room=9, ends=NONE) == []
    assert guessed([1], 4, ngram=2, room=9, ends=NONE) == []


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.integers(1, 5), st.integers(1, 4))
def test_guesses_are_those_of_transformers(text, most, ngram):
    import torch
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    theirs = PromptLookupCandidateGenerator(
        num_output_tokens=most, max_matching_ngram_size=ngram, max_length=10**6
    )
    ids, _ = theirs.get_candidates(torch.tensor([text]))
    assert guessed(text, most, ngram=ngram, room=10**6, ends=NONE) == ids[0, len(text) :].tolist()


@pytest.mark.parametrize(
    ("chosen", "guess", "kept"),
    [
        ([4], [], [4]),
        ([4, 5, 6], [4, 5], [4, 5, 6]),
        ([4, 5, 6], [4, 7], [4, 5]),
        ([4, 5, 6], [7, 5], [4]),
        ([4, 8, 6], [4, 8], [4, 8]),
    ],
)
def test_what_is_right_ends_with_the_first_wrong_guess_or_the_text(chosen, guess, kept):
    assert right(chosen, guess, ends=frozenset({8})) == kept
