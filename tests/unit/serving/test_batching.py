"""Which requests are served together, told by the clock that the test turns."""

from hypothesis import given
from hypothesis import strategies as st

from llem.serving.generating.batching import Batching, Queue
from llem.serving.requests import Request


def request(number, at, length=4, out=2):
    return Request(number=number, prompt=number, tokens=[0] * length, output_tokens=out,
                   arrival_s=at)  # fmt: skip


def numbers(found):
    return [r.number for r in found]


def test_a_static_batch_waits_for_the_last_of_its_requests():
    queue = Queue([request(i, float(i)) for i in range(5)], Batching(batch_size=2))
    assert queue.take(0.0) == 1.0
    assert numbers(queue.take(1.0)) == [0, 1] and numbers(queue.take(9.0)) == [2, 3]
    # The rest is a batch of its own.
    assert numbers(queue.take(9.0)) == [4] and not len(queue)


def test_a_sorted_batch_is_the_oldest_request_and_those_of_nearest_length():
    lengths = [10, 90, 11, 50, 12]
    queue = Queue(
        [request(i, 0.0, length) for i, length in enumerate(lengths)],
        Batching(kind="sorted", batch_size=2),
    )
    assert [numbers(queue.take(0.0)) for _ in range(3)] == [[0, 2], [1, 3], [4]]


def test_a_dynamic_batch_takes_what_has_arrived_and_waits_as_long_as_it_may():
    queue = Queue(
        [request(i, float(i)) for i in range(6)],
        Batching(kind="dynamic", batch_size=3, wait_s=1.5),
    )
    assert queue.take(0.0) == 1.0  # the next one comes before the oldest must go
    assert queue.take(1.0) == 1.5
    assert numbers(queue.take(1.5)) == [0, 1]
    assert queue.take(1.6) == 2.0
    assert numbers(queue.take(4.0)) == [2, 3, 4]  # full at once
    assert numbers(queue.take(5.0)) == [5]  # nobody is to come: there is nothing to wait for


def test_a_dynamic_batch_keeps_to_its_tokens_with_padding():
    lengths = [4, 4, 20, 4]
    queue = Queue(
        [request(i, 0.0, length, out=1) for i, length in enumerate(lengths)],
        Batching(kind="dynamic", batch_size=9, batch_tokens=30),
    )
    # The third would make three rows of 21: it begins a batch of its own, as it must.
    assert [numbers(queue.take(0.0)) for _ in range(3)] == [[0, 1], [2], [3]]


@given(
    st.lists(st.tuples(st.floats(0, 20), st.integers(1, 30)), min_size=1, max_size=30),
    st.sampled_from(["static", "sorted", "dynamic"]),
    st.integers(1, 7),
    st.integers(0, 60),
    st.floats(0, 3),
)
def test_every_request_is_served_once_and_none_before_it_came(asked, kind, size, tokens, wait_s):
    requests = [request(i, at, length) for i, (at, length) in enumerate(asked)]
    queue = Queue(requests, Batching(kind=kind, batch_size=size, batch_tokens=tokens,
                                     wait_s=wait_s))  # fmt: skip
    now_s, served = 0.0, []
    while len(queue):
        found = queue.take(now_s)
        if isinstance(found, float):
            assert found > now_s
            now_s = found
            continue
        assert 1 <= len(found) <= size and all(r.arrival_s <= now_s for r in found)
        served += found
    assert sorted(numbers(served)) == list(range(len(requests)))
