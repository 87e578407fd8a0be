"""llem's loop gives the tokens that transformers' own `generate` gives, and counts every pass."""

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from deployments import serving
from served import LENGTHS, backend_of, columns, cut, ending_with, reference, served

from llem.records import Phase, RequestStatus
from llem.serving.generating.backend import TransformersBackend
from llem.serving.replica import Replica
from llem.serving.requests import make_requests
from llem.training.world import start_world


@pytest.fixture(scope="module")
def world():
    with start_world() as found:
        yield found


@pytest.mark.parametrize("lengths", [[9, 9, 9], LENGTHS])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache": "static"},
        {"kv_cache": False},
        {"attention": "eager"},
        {"precision": "bf16"},
        {"repetition_penalty": 1.7},
        {"no_repeat_ngram": 1},
        {"no_repeat_ngram": 2, "repetition_penalty": 0.6},
    ],
)
def test_greedy_tokens_are_those_of_generate(world, lengths, options):
    backend, requests = backend_of(world, lengths=lengths, **options)
    more = {k: v for k, v in options.items() if k == "repetition_penalty"}
    if "no_repeat_ngram" in options:
        more["no_repeat_ngram_size"] = options["no_repeat_ngram"]
    if options.get("cache") == "static":
        more["cache_implementation"] = "static"
    if options.get("kv_cache") is False:
        more["use_cache"] = False
    expected = reference(backend.model, requests, do_sample=False, eos_token_id=None, **more)
    assert served(backend, requests)[0] == expected
    assert len({tuple(row) for row in expected}) > 1  # else nothing would be compared


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.001},
        {"typical_p": 0.3},
        {"temperature": 2.0, "top_k": 5, "repetition_penalty": 1.4},
        {"top_p": 0.2},
        {"min_p": 0.9},
        {},
    ],
)
def test_sampled_tokens_are_those_of_generate_with_the_same_seed(world, options):
    backend, requests = backend_of(world, sample=True, **options)
    more = {"top_k": 50, **options}
    for seed in (1, 2):
        expected = reference(
            backend.model, requests, seed=seed, do_sample=True, eos_token_id=None, **more
        )
        assert served(backend, requests, seed=seed)[0] == expected
    assert expected != served(backend, requests, seed=3)[0]


def test_padding_is_no_part_of_a_text(world):
    """A prompt's text is the same alone and beside a longer one, whatever id it is padded with."""
    options = {"repetition_penalty": 3.0, "no_repeat_ngram": 1}
    backend, requests = backend_of(world, lengths=[3, 9], **options)
    together, _ = served(backend, requests)
    for request, text in zip(requests, together, strict=True):
        assert served(backend, [request])[0] == [text]


@pytest.mark.parametrize("least", [1, 5, 12])
def test_no_text_ends_before_it_may(world, least):
    backend, requests = backend_of(world, output_tokens=12, min_tokens=least, ignore_eos=False)
    free, _ = served(backend, requests)
    ends = {text[2] for text in free}
    ending_with(backend, ends)
    expected = reference(
        backend.model, requests, do_sample=False, eos_token_id=sorted(ends), min_new_tokens=least
    )
    found, _ = served(backend, requests)
    assert found == [cut(text, ends) for text in expected]
    assert least <= min(map(len, found))


def test_a_text_ends_where_the_model_ends_it(world):
    backend, requests = backend_of(world, output_tokens=12)
    free, _ = served(backend, requests)
    # A token that some row gives in its middle shall be the model's end.
    end = free[1][4]
    backend.model.generation_config.eos_token_id = end
    backend.options = {**backend.options, "ignore_eos": False}
    backend._generator = backend._make_generator()
    found, kept = served(backend, requests)
    for row, whole in zip(found, free, strict=True):
        cut = whole.index(end) + 1 if end in whole else len(whole)
        assert row == whole[:cut]
    statuses = [RequestStatus(row[-1]) for row in kept.rows["requests"]]
    assert statuses[1] is RequestStatus.STOPPED
    ended = [s is RequestStatus.STOPPED for s in statuses]
    assert ended == [end in whole for whole in free]
    # What ended reads and gives nothing more, though its row is computed.
    forwards = kept.rows["forwards"]
    assert sum(row[6] for row in forwards) == sum(map(len, found))
    assert all(row[4] == len(requests) for row in forwards)


def test_every_pass_is_recorded_with_what_it_read_and_gave(world):
    backend, requests = backend_of(world, output_tokens=4)
    _, kept = served(backend, requests)
    rows = kept.rows["forwards"]
    total, count = sum(LENGTHS), len(LENGTHS)
    assert [row[0] for row in rows] == [0, 1, 2, 3] and {row[1] for row in rows} == {0}
    assert [row[5] for row in rows] == [total, count, count, count]
    assert [row[6] for row in rows] == [count] * 4
    assert [row[7] for row in rows] == [total + count * i for i in range(4)]
    assert [row[11] for row in rows] == [count] * 4
    assert [row[12] for row in rows] == [sum(n * (n + 1) // 2 for n in LENGTHS),
                                         *(total + count * i for i in (1, 2, 3))]  # fmt: skip
    assert [row[10] for row in rows] == [Phase.PREFILL] + [Phase.DECODE] * 3
    # Each begins where the one before it ended.
    assert [row[2] for row in rows[1:]] == [row[3] for row in rows[:-1]]
    for request, row in zip(requests, kept.rows["requests"], strict=True):
        assert row[3:5] == (len(request.tokens), 4)
        assert row[6:9] == (rows[0][2], rows[0][3], rows[-1][3])


def test_a_pass_without_a_cache_computes_every_text_again(world):
    backend, requests = backend_of(world, output_tokens=3, kv_cache=False)
    _, kept = served(backend, requests)
    for step, row in enumerate(columns(kept)):
        lengths = [n + step for n in LENGTHS]
        assert row["tokens_in"] == row["context"] == sum(lengths)
        assert row["attended"] == sum(n * (n + 1) // 2 for n in lengths)


def test_the_warm_up_leaves_no_requests_and_its_passes_have_its_phase(world):
    backend, requests = backend_of(world, output_tokens=2)
    _, kept = served(backend, requests, warmup=True)
    assert not kept.rows["requests"]
    assert {(row[1], row[10]) for row in kept.rows["forwards"]} == {(-1, Phase.WARMUP)}


def test_whoever_is_told_to_leave_does_so_after_the_pass_and_says_what_was_given(
    world, monkeypatch
):
    monkeypatch.setattr("llem.serving.log.ASK_NS", 0)
    backend, requests = backend_of(world, output_tokens=6)
    asked = iter([None, None, "the queue is closed"])
    tokens, kept = served(backend, requests, should_stop=lambda: next(asked))
    assert {len(row) for row in tokens} == {3} and len(kept.rows["forwards"]) == 3
    assert {(row[4], row[-1]) for row in kept.rows["requests"]} == {(3, RequestStatus.LEFT)}
    assert tokens == [row[:3] for row in served(backend, requests)[0]]


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2", "mistral", "gpt_neox", "opt"])
def test_other_families_are_served_alike(world, model_type):
    from deployments import LLAMA

    from llem.campaign.study.served import model_from_config

    config = {**LLAMA, "model_type": model_type}
    if model_type == "gpt2":
        config = {"model_type": "gpt2", "vocab_size": 320, "n_embd": 64, "n_layer": 2,
                  "n_head": 4, "n_positions": 512}  # fmt: skip
    if model_type == "opt":
        config |= {"ffn_dim": 128, "word_embed_proj_dim": 64}
    run = serving(
        model=model_from_config("other", config),
        options={"batch_size": 5},
        prompts={"count": 5, "input_tokens": 9, "output_tokens": 8},
    )
    backend = TransformersBackend(run, Replica(world, ranks=1))
    backend.load()
    requests = [
        type(r)(number=r.number, prompt=0, tokens=r.tokens[: LENGTHS[r.number]], output_tokens=8)
        for r in make_requests(run, backend.tokenizer)
    ]
    expected = reference(backend.model, requests, do_sample=False, eos_token_id=None)
    assert served(backend, requests)[0] == expected
