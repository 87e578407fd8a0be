"""Kinds of weights, caches, attention and compilation: each as transformers itself has it, and told
as what it became. What is not installed is skipped."""

import shutil

import pytest

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

import torch
from deployments import serving
from served import backend_of, reference, served

from llem.errors import InputError
from llem.serving.generating.abilities import QUANTISERS, installed
from llem.serving.generating.backend import TransformersBackend
from llem.serving.replica import Replica
from llem.training.world import start_world

# Shapes that all kinds take: groups of 64 numbers within a head's keys, and in each row.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4,
        "num_key_value_heads": 2}  # fmt: skip
ON_CPU = [kind for kind in QUANTISERS if kind != "torchao-int4"]


@pytest.fixture(scope="module")
def world():
    with start_world() as found:
        yield found


def needing(*packages):
    for package in packages:
        if not installed(package):
            pytest.skip(f"{package} is not installed")


def greedy(backend, requests, **more):
    return reference(backend.model, requests, do_sample=False, eos_token_id=None, **more)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ON_CPU)
def test_quantised_weights_are_fewer_bytes_and_give_generate_s_tokens(world, kind, precision):
    needing(*QUANTISERS[kind][0])
    options = {"quantisation": kind, "precision": precision}
    backend, requests = backend_of(world, config=WIDE, lengths=[9, 9, 4], **options)
    found, _ = served(backend, requests)
    assert found == greedy(backend, requests)
    told = backend.effective()
    assert (told["quantisation"], told["precision"]) == (kind, precision)
    assert told["parameters"] == backend.run.params
    whole, _ = backend_of(world, config=WIDE, lengths=[9, 9, 4], precision=precision)
    close, exact = (logits_of(b, requests) for b in (backend, whole))
    assert not torch.equal(close, exact)
    # Of the order of the rounding: 8 bits a part in some hundred, 4 bits one in ten.
    bound = 0.06 if "8" in kind else 0.45
    assert (close - exact).norm() < bound * exact.norm()


def logits_of(backend, requests):
    ids = torch.tensor([requests[0].tokens])
    with torch.no_grad():
        return backend.model(input_ids=ids).logits[0, -1].float()


@pytest.mark.slow
def test_scales_may_be_quantised_too(world):
    needing("bitsandbytes", "accelerate")
    options = {"quantisation": "nf4", "double_quantisation": True}
    backend, requests = backend_of(world, config=WIDE, lengths=[9, 9], **options)
    assert backend.model.config.quantization_config.bnb_4bit_use_double_quant
    assert served(backend, requests)[0] == greedy(backend, requests)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4])
def test_a_quantised_cache_gives_generate_s_tokens(world, bits):
    """Beyond the 128 tokens that it keeps as they are."""
    needing("optimum.quanto")
    options = {"cache": "quantized", "cache_bits": bits}
    backend, requests = backend_of(world, config=WIDE, lengths=[9, 9, 4], output_tokens=140,
                                   **options)  # fmt: skip
    more = {"cache_implementation": "quantized",
            "cache_config": {"backend": "quanto", "nbits": bits}}  # fmt: skip
    found, _ = served(backend, requests)
    assert found == greedy(backend, requests, **more)
    assert found != greedy(backend, requests)  # else nothing was quantised
    assert {k: backend.effective()[k] for k in options} == options


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"beams": 3}])
def test_a_static_cache_is_used_again_for_the_next_batch(world, more):
    backend, requests = backend_of(world, lengths=[9, 4], cache="static", **more)
    again = {"num_beams": 3} if more else {}
    for batch in (requests, requests[::-1], requests):
        assert served(backend, batch)[0] == greedy(backend, batch, **again)
    assert len(backend._generator._make_cache._made) == 1


@pytest.mark.slow
def test_flex_attention_gives_the_tokens_of_eager(world):
    """Of equal prompts: for a mask of padding torch 2.13 makes C++ that no compiler takes."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("flex_attention needs a C++ compiler on the CPU")
    backend, requests = backend_of(world, lengths=[9, 9, 9], attention="flex_attention")
    plain, _ = backend_of(world, lengths=[9, 9, 9], attention="eager")
    assert backend.effective()["attention"] == "flex_attention"
    assert served(backend, requests)[0] == served(plain, requests)[0]


def compiled(world, **options):
    """The tokens of compiled passes, with those of passes that are not."""
    lengths = [9] if "prompt_lookup_tokens" in options else [9, 4]
    backend, requests = backend_of(world, lengths=lengths, compile=True, **options)
    plain_options = {k: v for k, v in options.items() if k != "compile_backend"}
    plain, _ = backend_of(world, lengths=lengths, **plain_options)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found, _ = served(backend, requests)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs
    assert backend.effective()["compile"] is True
    return found, served(plain, requests)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"cache": "dynamic"},
        {"cache": "static"},
        {"beams": 2},
        {"beams": 2, "cache": "static"},
        {"prompt_lookup_tokens": 3, "cache": "static"},
    ],
)
def test_a_traced_pass_gives_the_tokens_of_one_that_is_not(world, options):
    found, plain = compiled(world, compile_backend="eager", **options)
    assert found == plain


@pytest.mark.slow
def test_a_compiled_pass_gives_the_tokens_of_one_that_is_not(world):
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("torch.compile needs a C++ compiler")
    found, plain = compiled(world, cache="static")
    assert found == plain


def test_a_backend_of_the_compiler_that_there_is_not_is_refused_with_the_nearest(world):
    with pytest.raises(InputError) as error:
        backend_of(world, compile=True, compile_backend="inducter")
    [fault] = error.value.faults
    assert fault.path == "options.compile_backend" and "did you mean 'inductor'" in fault.hint


def test_without_a_compiler_nothing_is_compiled(world, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(InputError) as error:
        backend_of(world, compile=True)
    [fault] = error.value.faults
    assert fault.path == "options.compile" and "no compiler" in fault.message


def test_all_that_is_wrong_is_told_at_once(world):
    options = {"beams": 2, "sample": True, "attention": "flash_attention_3", "tf32": True,
               "cache": "offloaded"}  # fmt: skip
    with pytest.raises(InputError) as error:
        TransformersBackend(serving(options=options), Replica(world, ranks=1))
    assert [fault.path for fault in error.value.faults] == [
        "options.beams", "options.attention", "options.attention", "options.cache", "options.tf32",
    ]  # fmt: skip
    assert all(fault.hint for fault in error.value.faults)
