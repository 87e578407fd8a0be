"""Which documents are held out, and how many are unique: as one would count them by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llem.data.split import count_unique, last_held_out, runs_of

# Few distinct hashes, some alike in their leading bits, so that copies and ties are common.
HASHES = st.integers(0, 5).map(lambda i: (i // 2 << 61) + i) | st.integers(0, 2**64 - 1)
DOCUMENTS = st.lists(HASHES, min_size=1, max_size=40)


@pytest.fixture(params=[3, 1 << 22])
def together(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many documents at a time: all of them, or a few."""
    monkeypatch.setattr("llem.data.split._TOGETHER", request.param)


def arrays(found: list[int]) -> tuple[np.ndarray, np.ndarray]:
    # Documents of one content have one length.
    return np.array(found, dtype=np.uint64), np.array([1 + h % 7 for h in found], dtype=np.int64)


@pytest.mark.usefixtures("together")
class TestAsByHand:
    def test_the_smallest_hashes_are_held_out_until_there_are_enough_tokens(self) -> None:
        @given(found=DOCUMENTS, data=st.data())
        def check(found: list[int], data: st.DataObject) -> None:
            hashes, lengths = arrays(found)
            tokens = data.draw(st.integers(1, int(lengths.sum())))
            last = last_held_out(hashes, lengths, tokens=tokens)
            assert last in found
            assert lengths[hashes <= last].sum() >= tokens
            assert lengths[hashes < last].sum() < tokens

        check()

    def test_of_copies_one_is_counted(self) -> None:
        @given(found=DOCUMENTS)
        def check(found: list[int]) -> None:
            hashes, lengths = arrays(found)
            last = sorted(found)[len(found) // 2]
            unique = count_unique(hashes, lengths, last=last)
            assert unique.documents == len(set(found))
            assert unique.tokens == sum(1 + h % 7 for h in set(found))
            assert unique.training_tokens == sum(1 + h % 7 for h in set(found) if h > last)

        check()


@given(chosen=st.lists(st.booleans(), max_size=30))
def test_runs_hold_what_is_chosen_and_touch_nowhere(chosen: list[bool]) -> None:
    runs = runs_of(np.array(chosen, dtype=bool))
    held = [i for a, b in runs.tolist() for i in range(a, b)]
    assert held == [i for i, one in enumerate(chosen) if one]
    assert all(b < a for (_, b), (a, _) in zip(runs[:-1].tolist(), runs[1:].tolist(), strict=True))
