"""Whether a run is tried again: a pure function of how its attempts ended."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.campaign import CustomModel, Decoder, Layout, Predicted, Recipe, Run, TokenData
from llem.cluster.scheduler.retry import TRIES, Ending, GiveUp, Go, next_try, smaller_layout

DATA = TokenData(path="d", dtype="uint8", tokens=10**6, evaluation_tokens=1000, fingerprint="ab")
RUN = Run(
    model=Decoder(layers=2, width=16, heads=2, mlp_width=32, vocabulary=256, context=32),
    tokens=51200,
    steps=100,
    seed=0,
    recipe=Recipe(batch_tokens=512, learning_rate=1e-2, warmup_steps=5),
    data=DATA,
    layout=Layout(gpus_per_node=2, micro_batch=8),
    predicted=Predicted(duration_s=1, gpu_hours=1, energy_j=1, memory_bytes=1),
)


def endings(*causes, **values):
    return [
        Ending(number=i, cause=cause, reason=f"{cause} {i}", started_ns=100 + i, **values)
        for i, cause in enumerate(causes)
    ]


def test_a_run_that_was_never_tried_is_tried_as_planned():
    assert next_try(RUN, []) == Go(RUN.layout)


@pytest.mark.parametrize(
    ("cause", "most"),
    [("diverged", 1), ("refused", 1), ("exception", 2), ("rendezvous", 5), ("disk-full", 5),
     ("node-failure", 5), ("killed", 5), ("preempted", 20), ("time-limit", 20)],
)  # fmt: skip
def test_each_cause_has_a_number_of_tries(cause, most):
    for count in range(1, most):
        assert next_try(RUN, endings(*[cause] * count)) == Go(RUN.layout)
    given_up = next_try(RUN, endings(*[cause] * most))
    assert isinstance(given_up, GiveUp)
    assert given_up.cause == cause
    assert f"{cause} {most - 1}" in given_up.reason


def test_another_cause_does_not_use_up_the_tries_of_this_one():
    assert isinstance(next_try(RUN, endings("exception", "preempted", "killed")), Go)
    assert isinstance(next_try(RUN, endings("exception", "preempted", "exception")), GiveUp)


def test_an_attempt_that_got_further_begins_the_count_anew():
    stuck = endings(*["preempted"] * 40)
    moving = [replace(e, saved_step=e.number + 1) for e in stuck]
    assert isinstance(next_try(RUN, stuck), GiveUp)
    assert isinstance(next_try(RUN, moving), Go)
    # one that was killed told nothing, but the next began where it had come to
    killed = [replace(e, start_step=e.number, cause="killed") for e in stuck]
    assert isinstance(next_try(RUN, killed), Go)
    halted = [replace(e, saved_step=min(e.number + 1, 10)) for e in stuck]
    assert isinstance(next_try(RUN, halted), GiveUp)


def test_too_little_memory_halves_the_micro_batch_down_to_one_then_recomputes_then_gives_up():
    tried, layouts = [], []
    for number in range(10):
        chosen = next_try(RUN, tried)
        if isinstance(chosen, GiveUp):
            break
        layout = chosen.layout
        layouts.append((layout.micro_batch, layout.grad_accum, layout.activation_checkpointing))
        tried.append(Ending(number=number, cause="out-of-memory", layout=layout))
    assert layouts == [(8, 1, False), (4, 2, False), (2, 4, False), (1, 8, False), (1, 8, True)]
    assert chosen.cause == "out-of-memory"


def test_what_memory_taught_is_kept_in_later_attempts_and_said():
    small = replace(RUN.layout, micro_batch=4, grad_accum=2)
    tried = [Ending(number=0, cause="out-of-memory", layout=RUN.layout),
             Ending(number=1, cause="preempted", layout=small, saved_step=10)]  # fmt: skip
    chosen = next_try(RUN, tried)
    assert chosen == Go(small, "micro-batch 4, accumulation 2")
    # but not where the plan has other ranks by now
    moved = RUN.with_layout(replace(RUN.layout, gpus_per_node=4, micro_batch=4))
    assert next_try(moved, tried) == Go(moved.layout)


def test_a_users_own_model_class_is_not_made_to_recompute():
    model = CustomModel(
        class_path="m:C", size="width", value=8, params=10, vocabulary=256, context=32
    )
    own = replace(RUN, model=model)
    assert smaller_layout(own, replace(RUN.layout, micro_batch=1, grad_accum=8)) is None


def test_resubmitting_begins_the_count_anew_but_keeps_what_memory_taught():
    tried = endings("exception", "exception")
    assert isinstance(next_try(RUN, tried), GiveUp)
    assert isinstance(next_try(RUN, tried, since_ns=102), Go)
    assert isinstance(next_try(RUN, tried, since_ns=101), Go)
    given_up = [replace(tried[-1], given_up="said so")]
    assert next_try(RUN, given_up) == GiveUp("exception", "said so")
    # where memory was too little last, the next smaller layout; the smallest, where there is none
    tight = replace(RUN.layout, micro_batch=1, grad_accum=8)
    least = replace(tight, activation_checkpointing=True)
    for layout in (tight, least):
        assert next_try(RUN, endings("out-of-memory", layout=layout), since_ns=999).layout == least
    assert isinstance(next_try(RUN, endings("out-of-memory", layout=least)), GiveUp)


@given(st.lists(st.sampled_from([*TRIES, "out-of-memory", "diverged"]), max_size=60))
def test_no_sequence_of_failures_without_progress_goes_on_for_ever(causes):
    tried = []
    for number, cause in enumerate(causes):
        chosen = next_try(RUN, tried)
        if isinstance(chosen, GiveUp):
            return
        ranks = chosen.layout.micro_batch * chosen.layout.grad_accum
        assert ranks == RUN.layout.micro_batch * RUN.layout.grad_accum
        tried.append(Ending(number=number, cause=cause, layout=chosen.layout))
    assert len(tried) <= sum(TRIES.values()) + 6
