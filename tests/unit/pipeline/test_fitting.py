"""From observations to fit.json: which rows are used, what is refused, what is recorded."""

import numpy as np
import pytest

from llem.errors import InputError
from llem.pipeline import (
    EdgeMinimaError,
    TableError,
    compare_observations,
    fit_observations,
)
from llem.pipeline.slices import Grid, edge_minima
from llem.scaling import ScalingDataError, Target
from llem.scaling.answers.optimum import Prices

TRUTH = {"E": 1.8, "A": 480.0, "B": 2100.0, "alpha": 0.35, "beta": 0.37}


def loss_of(params, tokens):
    t = TRUTH
    return t["E"] + t["A"] / params ** t["alpha"] + t["B"] / tokens ** t["beta"]


def grid(*, shift=1.0, levels=4, sizes=5):
    """Rows of an isoFLOP grid, `shift` times as large as is optimal."""
    rows = []
    for c in np.geomspace(1e17, 1e19, levels):
        for factor in np.geomspace(0.25, 4.0, sizes):
            params = shift * factor * 0.08 * c**0.5136
            tokens = c / 6 / params
            rows.append(
                {
                    "run_id": f"{c:.1e}-{factor:.2f}",
                    "params": params,
                    "tokens": tokens,
                    "loss": loss_of(params, tokens),
                    "energy_j": 1e3 + 1e-11 * c,
                    "duration_s": c / 1e14,
                    "ranks": 1,
                }
            )
    return rows


def fit(rows, **options):
    return fit_observations(rows, **{"bootstrap": 0, **options})


def test_it_finds_the_law_and_keeps_the_account():
    found = fit(grid())
    assert found["params"] == pytest.approx(TRUTH, rel=1e-3)
    assert found["refusals"] == {
        "slices": [], "judged": 4, "refused": False, "allowed": False,
    }  # fmt: skip
    assert found["checkpoints"] is None
    assert found["excluded"] == []


def test_runs_that_did_not_complete_are_left_out_by_name_and_reason():
    rows = [{**row, "status": "completed", "reason": ""} for row in grid()]
    rows[0] |= {"status": "diverged", "reason": "loss is NaN", "loss": float("nan")}
    rows[7] |= {"loss": None}
    names = [row["run_id"] for row in rows]
    found = fit(rows, exclude=frozenset({names[3]}))
    assert found["n_observations"] == len(rows) - 3
    assert found["excluded"] == [
        {"run_id": names[0], "reason": "diverged: loss is NaN"},
        {"run_id": names[3], "reason": "excluded by the user"},
        {"run_id": names[7], "reason": "no evaluation loss"},
    ]


def test_a_loss_that_lacks_is_a_fault_where_no_status_explains_it():
    rows = grid()
    rows[2]["loss"] = None
    with pytest.raises(TableError, match="row 2, loss"):
        fit(rows)


def test_excluding_a_run_that_is_not_there_is_refused():
    rows = grid()
    near = rows[0]["run_id"] + "x"
    with pytest.raises(InputError, match="did you mean"):
        fit(rows, exclude=frozenset({near}))


def test_what_the_fitter_refuses_is_told_of_the_file():
    with pytest.raises(ScalingDataError, match="observations: "):
        fit(grid(sizes=1)[:3])


def test_a_grid_off_the_optimum_is_refused_with_every_slice_its_side_and_the_remedy():
    with pytest.raises(EdgeMinimaError) as error:
        fit(grid(shift=20.0))
    assert len(error.value.slices) == 4
    assert error.value.exit_status == 2
    lines = error.value.lines()
    assert "4 of 4 isoFLOP slices have no minimum inside" in lines[0]
    assert "1e17 FLOP: the loss is lowest at the smallest of the 5 sizes" in lines[1]
    assert "train smaller models at this compute" in lines[1]
    assert "--allow-edge-minima" in lines[-1]
    with pytest.raises(EdgeMinimaError) as error:
        fit(grid(shift=0.05))
    assert "train larger models" in str(error.value)


def test_the_refusal_can_be_overridden_and_is_then_recorded():
    found = fit(grid(shift=20.0), allow_edge_minima=True)
    assert found["refusals"]["allowed"] is True
    assert [s["flops"] for s in found["refusals"]["slices"]] == pytest.approx(
        np.geomspace(1e17, 1e19, 4)
    )
    assert sum("no minimum inside the sizes trained" in w for w in found["warnings"]) == 4


@pytest.mark.parametrize(("off", "form"), [(1, False), (2, True)])
def test_where_more_than_one_slice_in_four_brackets_nothing_the_law_s_form_is_said_to_tell(
    off, form
):
    found = fit(grid()[: -5 * off] + grid(shift=20.0)[-5 * off :], allow_edge_minima=True)
    assert found["refusals"]["judged"] == 4 and len(found["refusals"]["slices"]) == off
    assert sum("no minimum inside the sizes trained" in w for w in found["warnings"]) == off
    assert (
        any(f"{off} of 4 isoFLOP slices bracket no optimum" in w for w in found["warnings"]) == form
    )


def test_a_table_that_is_no_grid_is_never_refused():
    rng = np.random.default_rng(0)
    for rows in (60, 20_000):
        n, d = 10 ** rng.uniform(6, 9, rows), 10 ** rng.uniform(8, 11, rows)
        assert edge_minima(n, loss_of(n, d), 6 * n * d) == Grid()
    # A fan: one number of tokens at each size, where larger is always better.
    n = np.geomspace(1e6, 1e9, 20)
    d = np.full(20, 1e10)
    assert edge_minima(n, loss_of(n, d), 6 * n * d) == Grid()


def test_a_lowest_loss_at_the_edge_by_noise_alone_is_not_refused():
    params = np.geomspace(1e6, 1e8, 9)
    flops = np.full(9, 1e17)
    loss = 3 + 0.05 * np.log(params / 1e7) ** 2
    assert edge_minima(params, loss, flops) == Grid(slices=1)
    loss[0] = loss.min() - 1e-3
    assert edge_minima(params, loss, flops) == Grid(slices=1)


def checkpoints():
    rows = []
    for params in np.geomspace(1e6, 1e8, 5):
        for total in (2e8, 1e9, 5e9):
            for share in (0.05, 0.3, 0.6, 0.95, 1.0):
                rate = 1e-3 if share < 0.9 else 1e-4
                tokens = share * total
                rows.append(
                    {
                        "run_id": f"{params:.0f}-{total:.0f}",
                        "params": params,
                        "tokens": tokens,
                        "loss": loss_of(params, tokens) * (1.02 if rate > 5e-4 else 1.0),
                        "learning_rate": rate,
                    }
                )
    return rows


def test_of_checkpoints_the_annealed_ones_are_fitted_and_each_run_counts_once():
    found = fit(checkpoints())
    assert found["n_runs"] == 15
    assert found["n_observations"] == 30
    account = found["checkpoints"]
    assert (account["rows"], account["kept"], account["weights"]) == (75, 30, "run")
    assert {d["reason"] for d in account["dropped"]} == {"warm-up", "not annealed"}
    assert found["params"]["alpha"] == pytest.approx(TRUTH["alpha"], rel=1e-3)
    assert "30 of 75 checkpoints" in found["checklist"]["data"]["checkpoints"]


def test_checkpoints_may_be_kept_and_rows_weighed_alike():
    found = fit(checkpoints(), checkpoints="keep", weights="row")
    assert found["n_observations"] == 60
    assert found["checkpoints"]["weights"] == "row"


def test_a_name_of_several_sizes_is_no_run_with_checkpoints():
    rows = [{**row, "run_id": f"family {i % 5}"} for i, row in enumerate(grid())]
    found = fit(rows)
    assert found["checkpoints"] is None
    assert (found["n_observations"], found["n_runs"]) == (20, 5)


def test_what_the_user_declares_stands_in_the_checklist():
    found = fit(grid(), declared={"training.dataset": "FineWeb"})
    assert found["checklist"]["training"]["dataset"] == "FineWeb"
    with pytest.raises(InputError, match=r"did you mean 'training\.dataset'"):
        fit(grid(), declared={"training.datset": "x"})


def test_money_is_answered_where_there_are_prices():
    prices = Prices(per_kwh=0.2, currency="EUR")
    found = fit(grid(), targets=[Target(5.0, "EUR")], prices=prices)
    optimum = found["optima"][0]
    assert optimum["money"] == pytest.approx(5.0, rel=1e-6)
    assert optimum["energy_j"] == pytest.approx(25 * 3.6e6, rel=1e-6)


def test_a_law_of_energy_is_of_runs_in_which_the_same_was_measured():
    """On some nodes the processors were measured too: twice the joules of the same run."""
    rows = [{**row, "energy_domains": "gpu"} for row in grid()]
    for row in rows[::3]:
        row |= {"energy_domains": "gpu+package+dram", "energy_j": 2 * row["energy_j"]}
    found, alone = fit(rows), fit(grid())
    assert found["costs"]["energy_j"]["per_flop"] == pytest.approx(
        alone["costs"]["energy_j"]["per_flop"], rel=1e-6
    )
    assert found["costs"]["energy_j"]["rows"] == 13
    assert any(
        "(13 of gpu, 7 of gpu+package+dram): its law is of those of gpu" in warning
        for warning in found["warnings"]
    )
    assert not any("not of the same" in warning for warning in alone["warnings"])


def test_laws_are_compared_on_the_same_rows():
    rng = np.random.default_rng(0)
    rows = [{**row, "loss": row["loss"] * np.exp(0.002 * rng.standard_normal())} for row in grid()]
    found = compare_observations(rows, ["chinchilla", "compute_power_law"])
    assert found["best"] == "chinchilla"
    assert [row["law"] for row in found["laws"]] == ["chinchilla", "compute_power_law"]
