"""Large tensors are filled from a block: as asked for, the same again, and no two rows alike."""

import time

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from llem.serving.generating.randomweights import BLOCK, repeated_weights  # noqa: E402

ROWS, COLUMNS = 1025, 2048


def drawn(seed=0, fill=lambda t: t.normal_(0.0, 0.02), **options):
    torch.manual_seed(seed)
    with repeated_weights(), torch.no_grad():
        return fill(torch.empty(ROWS, COLUMNS, **options))


@pytest.mark.parametrize(
    ("fill", "mean", "std"),
    [
        (lambda t: t.normal_(), 0.0, 1.0),
        (lambda t: t.normal_(std=0.02), 0.0, 0.02),
        (lambda t: torch.nn.init.normal_(t, mean=0.5, std=0.1), 0.5, 0.1),
        (lambda t: t.uniform_(), 0.5, 12**-0.5),
        (lambda t: t.uniform_(-0.3, 0.1), -0.1, 0.4 * 12**-0.5),
        (lambda t: torch.nn.init.trunc_normal_(t, std=0.02, a=-1, b=1), 0.0, 0.02),
    ],
)
def test_numbers_are_spread_as_was_asked_for(fill, mean, std):
    found = drawn(fill=fill)
    # Five standard errors of a block's mean and standard deviation.
    assert abs(float(found.mean()) - mean) < 5 * std / BLOCK**0.5
    assert float(found.std()) == pytest.approx(std, rel=5 / (2 * BLOCK) ** 0.5)


def test_the_same_seed_draws_the_same_and_another_one_others():
    assert torch.equal(drawn(), drawn())
    assert not torch.equal(drawn(), drawn(seed=1))


def test_rows_differ_and_so_do_tensors():
    torch.manual_seed(0)
    with repeated_weights():
        one, other = (torch.empty(ROWS, COLUMNS).normal_() for _ in range(2))
    assert len(torch.unique(one, dim=0)) == ROWS
    assert torch.linalg.matrix_rank(one[:300]) == 300
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(64, 64).normal_(),
        lambda: torch.empty(ROWS, COLUMNS, dtype=torch.float64).normal_(),
        lambda: torch.empty(COLUMNS, ROWS).t().normal_(),
        lambda: torch.empty(ROWS, COLUMNS).normal_(generator=torch.Generator().manual_seed(5)),
    ],
)
def test_what_is_small_or_of_another_kind_is_drawn_as_ever(make):
    torch.manual_seed(0)
    as_ever = make()
    torch.manual_seed(0)
    with repeated_weights():
        assert torch.equal(make(), as_ever)


def test_a_model_on_the_meta_device_has_no_numbers():
    assert drawn(device="meta").device.type == "meta"


def test_it_takes_a_fraction_of_the_time():
    tensor = torch.empty(8 * ROWS, COLUMNS)

    def seconds(fill):
        fill()
        begun = time.process_time()
        fill()
        return time.process_time() - begun

    def fast():
        with repeated_weights():
            tensor.normal_()

    assert min(seconds(fast) for _ in range(3)) < 0.7 * min(
        seconds(tensor.normal_) for _ in range(3)
    )
