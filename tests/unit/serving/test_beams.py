"""Beam search finds the texts that transformers' own finds, and its passes are what they are."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from served import LENGTHS, backend_of, columns, cut, ending_with, reference, served

from llem.records import Phase, RequestStatus
from llem.training.world import start_world


@pytest.fixture(scope="module")
def world():
    with start_world() as found:
        yield found


def ends_of(backend, requests):
    """Tokens that beam searches of these requests like to give: a text ends soon, not at once."""
    free, _ = served(backend, requests)
    return {text[i] for text, i in zip(free, (2, 5, 3, 7, 4), strict=False)}


@pytest.mark.parametrize("lengths", [[9, 9, 9], LENGTHS])
@pytest.mark.parametrize(
    "options",
    [
        {"beams": 2},
        {"beams": 5},
        {"beams": 3, "cache": "static"},
        {"beams": 3, "kv_cache": False},
        {"beams": 3, "precision": "bf16"},
        {"beams": 3, "repetition_penalty": 1.7},
        {"beams": 3, "no_repeat_ngram": 2},
    ],
)
def test_its_texts_are_those_of_generate(world, lengths, options):
    backend, requests = backend_of(world, lengths=lengths, **options)
    more = {"num_beams": options["beams"]}
    if options.get("kv_cache") is False:
        more["use_cache"] = False
    more |= {k: v for k, v in options.items() if k == "repetition_penalty"}
    if "no_repeat_ngram" in options:
        more["no_repeat_ngram_size"] = options["no_repeat_ngram"]
    if options.get("cache") == "static":
        more["cache_implementation"] = "static"
    expected = reference(backend.model, requests, do_sample=False, eos_token_id=None, **more)
    found, _ = served(backend, requests)
    assert found == expected
    greedy = reference(backend.model, requests, do_sample=False, eos_token_id=None)
    assert found != greedy or options["beams"] == 2  # else nothing would be searched


@pytest.mark.parametrize("early", [False, True, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 3.0])
def test_texts_that_end_are_those_of_generate(world, early, penalty):
    options = {"beams": 4, "length_penalty": penalty, "early_stopping": early}
    backend, requests = backend_of(world, output_tokens=12, **options)
    ends = ends_of(backend, requests)
    ending_with(backend, ends)
    expected = reference(
        backend.model, requests, do_sample=False, eos_token_id=sorted(ends), num_beams=4,
        length_penalty=penalty, early_stopping=early,
    )  # fmt: skip
    found, kept = served(backend, requests)
    assert found == [cut(text, ends) for text in expected]
    statuses = [RequestStatus(row[-1]) for row in kept.rows["requests"]]
    assert [s is RequestStatus.STOPPED for s in statuses] == [text[-1] in ends for text in found]


def test_how_long_is_searched_follows_from_when_it_may_stop(world):
    passes, lengths = {}, {}
    for early, penalty in ((True, 1.0), (False, 1.0), ("never", 1.0), (True, -2.0)):
        options = {"beams": 4, "early_stopping": early, "length_penalty": penalty}
        backend, requests = backend_of(world, output_tokens=16, **options)
        ending_with(backend, ends_of(backend, requests))
        found, kept = served(backend, requests)
        passes[early, penalty] = columns(kept)["live"].sum()
        lengths[early, penalty] = sum(map(len, found))
    assert passes[True, 1.0] < passes["never", 1.0]
    assert passes[True, 1.0] <= passes[False, 1.0] <= passes["never", 1.0]
    assert lengths[True, -2.0] < lengths["never", 1.0]


def test_no_text_ends_before_it_may(world):
    backend, requests = backend_of(world, output_tokens=12, beams=3, min_tokens=6,
                                   ignore_eos=False)  # fmt: skip
    ends = ends_of(backend, requests)
    ending_with(backend, ends)
    expected = reference(
        backend.model, requests, do_sample=False, eos_token_id=sorted(ends), num_beams=3,
        min_new_tokens=6,
    )  # fmt: skip
    found, _ = served(backend, requests)
    assert found == [cut(text, ends) for text in expected]
    assert min(map(len, found)) >= 6


def test_its_passes_have_a_row_for_each_beam_and_give_their_tokens_at_the_end(world):
    backend, requests = backend_of(world, output_tokens=4, beams=3)
    _, kept = served(backend, requests)
    rows, total, count = columns(kept), sum(LENGTHS), len(LENGTHS)
    assert (rows["sequences"] == 3 * count).all() and (rows["live"] == 3 * count).all()
    assert rows["phase"].tolist() == [Phase.PREFILL] + [Phase.DECODE] * 3
    assert rows["tokens_in"].tolist() == [3 * total] + [3 * count] * 3
    assert rows["context"].tolist() == [3 * (total + count * i) for i in range(4)]
    pairs = sum(n * (n + 1) // 2 for n in LENGTHS)
    assert rows["attended"].tolist() == [3 * pairs, *rows["context"][1:].tolist()]
    # Nothing is known before the search is over.
    assert rows["tokens_out"].tolist() == [0, 0, 0, 4 * count]
    for row in kept.rows["requests"]:
        assert row[4] == 4 and row[7] == row[8] == rows["t1_ns"][-1]


def test_a_search_that_is_over_is_done_with_its_pass(world):
    """Its rows are computed further with the others', and are not live."""
    backend, requests = backend_of(world, output_tokens=12, beams=3, early_stopping=True)
    ends = ends_of(backend, requests)
    ending_with(backend, ends)
    found, kept = served(backend, requests)
    rows = columns(kept)
    known = [row[8] for row in kept.rows["requests"]]
    assert len(set(known)) > 1 and set(known) <= set(rows["t1_ns"].tolist())
    for row in rows:
        done = sum(at < row["t1_ns"] for at in known)
        assert row["live"] == 3 * (len(requests) - done) and row["sequences"] == 3 * len(requests)
        assert row["tokens_out"] == sum(
            len(text) for text, at in zip(found, known, strict=True) if at == row["t1_ns"]
        )


def test_whoever_has_to_leave_has_no_text_of_an_open_search(world):
    backend, requests = backend_of(world, output_tokens=6, beams=2)
    asked = iter([None, None, "the queue is closed"])
    tokens, kept = served(backend, requests, should_stop=lambda: next(asked))
    assert tokens == [[]] * len(requests) and len(kept.rows["forwards"]) == 3
    assert {row[4:5] + row[7:] for row in kept.rows["requests"]} == {(0, 0, 0, RequestStatus.LEFT)}


@pytest.mark.parametrize("model_type", ["gpt2", "mistral", "gpt_neox"])
def test_other_families_are_searched_alike(world, model_type):
    config = {"model_type": model_type}
    if model_type == "gpt2":
        config |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    if model_type == "mistral":
        config |= {"sliding_window": 5}
    backend, requests = backend_of(world, config=config, beams=3, output_tokens=9)
    expected = reference(backend.model, requests, do_sample=False, eos_token_id=None, num_beams=3)
    assert served(backend, requests)[0] == expected
