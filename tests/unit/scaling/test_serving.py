"""The law of serving on planted truths, and the size that is best over a model's life."""

import itertools
import math

import numpy as np
import pytest

from llem.scaling import (
    Counts,
    Models,
    OptionError,
    ScalingDataError,
    Use,
    fit_law,
    fit_serving,
    train_and_serve,
)

SIZES = (1e7, 3e7, 1e8, 3e8)
BATCHES = (1, 4, 16, 64)
LENGTHS = ((64, 32), (512, 64), (2048, 128))
# J by phase: per value and token, value and pass, pass, value of the cache, width, layer and pair,
# layer and pass, layer and token, width, layer and token, value and pass of several rows.
TRUTH = {
    "prefill": {"arithmetic": 6e-11, "weights": 4e-10, "pass": 0.2, "attention": 3e-11,
                "layer": 0.02, "row": 2e-5, "activations": 4e-8},
    "decode": {"arithmetic": 9e-11, "weights": 3e-10, "pass": 0.1, "cache": 8e-9,
               "layer": 0.01, "row": 3e-5, "activations": 6e-8, "packing": 2e-10},
}  # fmt: skip


def layers_of(params):
    return np.round(0.02 * params ** (1 / 3) * (1.0 + 0.3 * np.sin(params)))


def models_of(params):
    """Of no family's shape exactly; the output has a twentieth of what is multiplied."""
    n = np.asarray(params, dtype=float)
    layers = layers_of(n)
    return Models.of(n, multiplied=0.9 * n, head=0.045 * n, layers=layers,
                     width=np.sqrt(n / layers / 12), kv=3.0 * n ** (2 / 3))  # fmt: skip


def joules_of(models, counts, truth=TRUTH, cached=0.0):
    """In plain words, by phase."""
    p, d = truth["prefill"], truth["decode"]
    w, h, layers = models.multiplied, models.head, models.layers
    spread, kv, c = models.spread, models.kv, counts
    prefill = (
        c.prefills * (p["pass"] + (layers + 1) * p["layer"])
        + c.prefills * p["weights"] * np.maximum(0, w - cached)
        + p["arithmetic"] * ((w - h) * c.tokens_in + h * c.requests)
        + p["attention"] * spread * c.pairs
        + p["row"] * layers * c.tokens_in
        + p["activations"] * np.maximum(0, spread * c.tokens_in - layers * c.prefills * cached)
    )
    read = w + kv * c.context / np.maximum(c.decodes, 1e-9)
    many = np.clip(c.rows / np.maximum(c.decodes, 1e-9) - 1, 0, 1)
    decode = (
        c.decodes * (d["pass"] + (layers + 1) * d["layer"])
        + c.decodes * d["weights"] * np.maximum(0, read - cached)
        + d["packing"] * c.decodes * many * np.maximum(0, w - cached)
        + d["arithmetic"] * w * c.rows
        + d["cache"] * kv * c.context
        + d["row"] * layers * c.rows
        + d["activations"] * np.maximum(0, spread * c.rows - layers * c.decodes * cached)
    )
    return prefill, decode


def study(*, noise=0.0, cycles=3, seed=0, sizes=SIZES, batches=BATCHES, lengths=LENGTHS,
          joules=joules_of):  # fmt: skip
    """Columns of runs of 256 requests each; `joules(models, counts)` are prefill and decode."""
    random = np.random.default_rng(seed)
    rows = [
        (n, b, i, o, f"{n}-{b}-{i}")
        for n, b, (i, o) in itertools.product(sizes, batches, lengths)
        for _ in range(cycles)
    ]
    n, b, i, o = (np.array([row[k] for row in rows], dtype=float) for k in range(4))
    models = models_of(n)
    requests = np.full(n.shape, 256.0)
    counts = Counts(
        prefills=requests / b, requests=requests, tokens_in=requests * i,
        pairs=requests * i * (i + 1) / 2, decodes=requests / b * (o - 1), rows=requests * (o - 1),
        context=requests * np.array([sum(x + k + 1 for k in range(1, int(y)))
                                     for x, y in zip(i, o, strict=True)]),
    )  # fmt: skip
    prefill, decode = joules(models, counts)
    prefill = prefill * np.exp(random.normal(0, noise, n.size))
    decode = decode * np.exp(random.normal(0, noise, n.size))
    columns = {
        "models": models, "counts": counts, "batch": b, "tokens_in": i, "tokens_out": o,
        "prefill": prefill, "decode": decode, "deployment": [row[4] for row in rows],
    }  # fmt: skip
    return prefill + decode, columns


def together(columns):
    return {**columns, "prefill": None, "decode": None}


def test_planted_coefficients_come_back():
    cost, columns = study()
    law = fit_serving(cost, **columns, bootstrap=50)
    for phase, planted in TRUTH.items():
        found = law.terms(phase)
        assert set(found) == set(planted)
        for name, value in planted.items():
            assert found[name] == pytest.approx(value, rel=1e-5), (phase, name)
    assert law.cached == 0.0
    assert law.errors["all"]["law"] < 1e-8
    assert law.errors["tokens_in_left_out"]["law"] < 1e-6


def test_what_the_device_s_cache_holds_is_found():
    """Of models some of which it holds whole."""
    cached = 4e7
    cost, columns = study(sizes=(1e7, 3e7, 6e7, 1e8, 3e8), noise=0.01,
                          joules=lambda m, c: joules_of(m, c, cached=cached))  # fmt: skip
    law = fit_serving(cost, **columns, bootstrap=0)
    assert cached / 2 < law.cached < 2 * cached
    assert law.errors["params_left_out"]["law"] < 0.05


@pytest.mark.parametrize("use", [Use(1, 64, 32), Use(64, 2048, 128), Use(8, 300, 50)])
def test_a_token_s_cost_is_that_of_its_request_s_passes(use):
    sizes = np.array([1e7, 1e8, 1e9])
    family = {"multiplied": sizes, "head": 0 * sizes, "layers": 0.02 * sizes ** (1 / 3),
              "width": 30 * sizes ** (1 / 3), "kv": 3 * sizes ** (2 / 3)}  # fmt: skip
    whole = Models.of(sizes, **family)
    kind = {float(n): k for k, n in enumerate(sizes)}

    def of(models, counts):
        index = [kind[float(n)] for n in models.params]
        taken = Models(*(getattr(whole, f)[index] for f in
                         ("params", "multiplied", "head", "layers", "spread", "kv")))  # fmt: skip
        return joules_of(taken, counts)

    cost, columns = study(sizes=sizes, joules=of, cycles=1)
    index = [kind[float(n)] for n in columns["models"].params]
    columns["models"] = Models.of(sizes[index], **{k: v[index] for k, v in family.items()})
    law = fit_serving(cost, **columns, bootstrap=0)
    n, i, o = 5e7, use.tokens_in, use.tokens_out
    layers, width, kv = 0.02 * n ** (1 / 3), 30 * n ** (1 / 3), 3 * n ** (2 / 3)
    p, d = TRUTH["prefill"], TRUTH["decode"]
    held = sum(i + k + 1 for k in range(1, int(o)))
    joules = (
        (p["pass"] + p["layer"] * (layers + 1) + p["weights"] * n) / use.batch
        + i * (p["arithmetic"] * n + layers * (p["row"] + p["activations"] * width))
        + p["attention"] * layers * width * i * (i + 1) / 2
        + (o - 1) / use.batch * (d["pass"] + d["layer"] * (layers + 1) + d["weights"] * n
                                 + (use.batch > 1) * d["packing"] * n)
        + (o - 1) * (d["arithmetic"] * n + layers * (d["row"] + d["activations"] * width))
        + held * (d["cache"] + d["weights"]) * kv
    )  # fmt: skip
    assert law.per_token(n, use) == pytest.approx(joules / o, rel=1e-4)
    grown = law.per_token(sizes, use)
    assert grown.shape == (3,) and (np.diff(grown) > 0).all()


def roofline(peak_flops=2e14, bandwidth=1e12, idle_w=90.0, j_flop=4e-13, j_byte=2.5e-11,
             launch_s=4e-4):  # fmt: skip
    """Energy by a roofline in which time is the longer of reading and arithmetic, not their sum."""

    def energy(models, counts):
        w, kv = models.multiplied, models.kv
        found = []
        for passes, tokens, context in (
            (counts.prefills, counts.tokens_in, 0.0),
            (counts.decodes, counts.rows, counts.context),
        ):
            flops = 2 * w * tokens + 2 * context * kv
            read = 2 * w * passes + 2 * kv * context
            seconds = np.maximum(flops / peak_flops, read / bandwidth) + launch_s * passes
            found.append(idle_w * seconds + j_flop * flops + j_byte * read)
        return tuple(found)

    return energy


@pytest.mark.parametrize("apart", [True, False])
def test_on_a_roofline_the_law_foretells_what_was_left_out_and_a_power_law_does_not(apart):
    cost, columns = study(joules=roofline(), noise=0.01)
    law = fit_serving(cost, **(columns if apart else together(columns)), bootstrap=0)
    assert len(law.parts) == (2 if apart else 1)
    assert law.errors["all"]["law"] < 0.06
    for name in ("params_left_out", "batch_left_out", "tokens_in_left_out"):
        errors = law.errors[name]
        assert errors["law"] < 0.12, name
        assert errors["power_law"] > 2 * errors["law"], name


def test_a_run_that_was_held_up_hardly_moves_the_law():
    cost, columns = study(noise=0.02)
    calm = fit_serving(cost, **columns, bootstrap=0)
    slow = np.ones(len(cost))
    slow[::10] = 3.0
    columns |= {"prefill": columns["prefill"] * slow, "decode": columns["decode"] * slow}
    law = fit_serving(cost * slow, **columns, bootstrap=0)
    for n in (1e7, 1e8, 1e9):
        assert law.per_token(n) == pytest.approx(calm.per_token(n), rel=0.04)


def off_by_chance(columns, *, sizes, deployments, random):
    """Factors of the runs, off alike for the runs of a size and for those of a deployment."""
    found = np.zeros(len(columns["deployment"]))
    for names, sd in ((columns["models"].params, sizes), (columns["deployment"], deployments)):
        group = np.unique(names, return_inverse=True)[1]
        found += random.normal(0, sd, group.max() + 1)[group]
    return np.exp(found)


@pytest.mark.slow
def test_intervals_hold_the_law_and_a_further_deployment_as_often_as_they_say():
    sizes = (1e7, 2e7, 4e7, 8e7, 1.6e8, 3.2e8)
    exact, plain = study(cycles=1, sizes=sizes)
    truth = fit_serving(exact, **plain, bootstrap=0, judged=False)
    held = []
    for seed in range(60):
        random = np.random.default_rng(seed)
        cost, columns = study(cycles=1, sizes=sizes)
        off = off_by_chance(columns, sizes=0.05, deployments=0.05, random=random)
        own = {name: columns[name] * off for name in ("prefill", "decode")}
        law = fit_serving(cost * off, **{**columns, **own}, bootstrap=300, seed=seed,
                          judged=False)  # fmt: skip
        for n, use in ((1.5e7, Use(1, 64, 32)), (1e8, Use(16, 512, 64)), (6e8, Use(16, 512, 64))):
            wanted = float(truth.per_token(n, use))
            further = wanted * math.exp(random.normal(0, math.hypot(0.05, 0.05)))
            for deployed, value in ((False, wanted), (True, further)):
                low, high = law.interval(n, use, deployed=deployed)
                held.append((deployed, low < value < high))
    for deployed in (False, True):
        assert 0.88 < np.mean([good for which, good in held if which == deployed]) <= 0.99


def test_what_a_deployment_costs_is_less_sure_than_the_law():
    random = np.random.default_rng(5)
    cost, columns = study(cycles=2)
    off = off_by_chance(columns, sizes=0.0, deployments=0.10, random=random)
    own = {name: columns[name] * off for name in ("prefill", "decode")}
    law = fit_serving(cost * off, **{**columns, **own}, bootstrap=300, judged=False)
    alone, deployed = (
        0.5 * np.diff(np.log(law.interval(1e8, deployed=which)))[0] for which in (False, True)
    )
    assert 0.15 < deployed < 0.40 and alone < 0.8 * deployed


def test_cycles_of_a_deployment_are_no_further_evidence_of_the_law():
    """What differs between deployments and not between cycles: the interval is not narrower for
    all cycles' being counted."""
    random = np.random.default_rng(3)
    once, columns = study(cycles=1)
    off = np.exp(random.normal(0, 0.05, once.size))
    own = {"prefill": columns["prefill"] * off, "decode": columns["decode"] * off}
    one = fit_serving(once * off, **{**columns, **own}, bootstrap=300)
    many, repeated = study(cycles=5)
    off = np.repeat(off, 5)
    own = {"prefill": repeated["prefill"] * off, "decode": repeated["decode"] * off}
    five = fit_serving(many * off, **{**repeated, **own}, bootstrap=300)
    widths = [np.diff(np.log(law.interval(1e8)))[0] for law in (one, five)]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)
    assert five.errors["noise"] < 1e-9


def test_terms_that_the_runs_cannot_tell_apart_are_left_out_and_named():
    sizes = np.geomspace(1e7, 3e8, 9)
    cost, columns = study(sizes=sizes, batches=(8,), lengths=((64, 32),))
    law = fit_serving(cost, **columns, bootstrap=0)
    [decode] = [part for part in law.parts if part.phase == "decode"]
    told = {entry["name"]: entry["reason"] for entry in decode.not_used}
    assert decode.names[0] == "arithmetic"
    assert "cannot tell it from arithmetic" in told["packing"]
    # where all is as it was measured, what is foretold is right all the same
    own = [float(law.predict(models_of(n), Use(8, 64, 32).of_request(np.array(n))))
           for n in sizes]  # fmt: skip
    seen = [cost[columns["models"].params == n][0] / 256 for n in sizes]
    assert own == pytest.approx(seen, rel=0.03)


def test_what_is_not_known_of_models_is_not_told_apart():
    cost, columns = study()
    law = fit_serving(cost, **{**columns, "models": Models.of(columns["models"].params)},
                      bootstrap=0)  # fmt: skip
    names = {part.phase: part.names for part in law.parts}
    assert "cache" not in names["decode"] and "attention" not in names["prefill"]
    assert "pass" in names["decode"] and "layer" not in names["decode"]


def test_every_fault_of_the_columns_is_told():
    cost, columns = study()
    cost[3] = math.nan
    columns["batch"][5] = 0
    with pytest.raises(ScalingDataError) as error:
        fit_serving(cost, **columns)
    assert "energy_j[3]" in str(error.value) and "batch[5]" in str(error.value)


# -- train and serve


@pytest.fixture(scope="module")
def trained():
    """A fit of a planted Chinchilla law with energy."""
    random = np.random.default_rng(4)
    n = np.repeat(np.geomspace(1e7, 1e9, 6), 6)
    d = np.tile(np.geomspace(3e8, 3e10, 6), 6)
    loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
    loss *= np.exp(random.normal(0, 0.002, n.size))
    energy = 2e4 + 3e-5 * d + 5e-12 * 6 * n * d
    energy *= np.exp(random.normal(0, 0.01, n.size))
    return fit_law(n, d, loss, energy_j=energy, bootstrap=200)


@pytest.fixture(scope="module")
def serving():
    cost, columns = study(noise=0.02)
    return fit_serving(cost, **columns, bootstrap=200)


def brute(fit, serving, loss, served, use):
    """The least of E_train + T j over a grid of sizes, and over a fine one about the least, with
    the law in plain code."""
    law = fit.params

    def of(n):
        left = loss - law["E"] - law["A"] / n ** law["alpha"]
        if left <= 0:
            return (math.inf,)
        d = (law["B"] / left) ** (1 / law["beta"])
        flops = fit.flops_model.coefficient * n**fit.flops_model.exponent * d
        training = float(fit.costs["energy_j"].predict(d, flops))
        return (training + served * float(serving.per_token(n, use)), n, d, training)

    _, about, _, _ = min(of(n) for n in np.geomspace(1e6, 1e11, 2001))
    return min(of(n) for n in np.geomspace(about / 1.02, about * 1.02, 2001))


@pytest.mark.parametrize("served", [0.0, 1e9, 1e12])
@pytest.mark.parametrize("loss", [2.6, 3.0])
def test_the_best_size_over_a_life_is_the_brute_force_s(trained, serving, served, loss):
    use = Use(16, 512, 128)
    answer = train_and_serve(trained.ensemble, serving, loss=loss, served_tokens=served, use=use)
    total, n, d, training = brute(trained, serving, loss, served, use)
    assert answer.total_j == pytest.approx(total, rel=1e-8)
    assert answer.total_j <= total * (1 + 1e-9)
    assert answer.params == pytest.approx(n, rel=1e-3)
    assert answer.tokens == pytest.approx(d, rel=5e-3)
    assert answer.training_j == pytest.approx(training, rel=5e-3)
    assert trained.predict(answer.params, answer.tokens) == pytest.approx(loss, rel=1e-9)
    assert answer.ci["params"][0] < answer.params < answer.ci["params"][1]


def test_the_more_is_served_the_smaller_is_the_best_size(trained, serving):
    answers = [
        train_and_serve(trained.ensemble, serving, loss=2.7, served_tokens=t)
        for t in (0.0, 1e9, 1e11, 1e13)
    ]
    sizes = [answer.params for answer in answers]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.8 * sizes[0]
    assert answers[0].saving == pytest.approx(0.0, abs=1e-9)
    assert answers[-1].saving > 0.01
    assert answers[0].params == pytest.approx(answers[-1].alone["params"], rel=1e-6)


def test_intervals_of_a_life_are_from_both_laws(trained, serving):
    both = train_and_serve(trained.ensemble, serving, loss=2.7, served_tokens=1e11)
    low, high = both.ci["total_j"]
    assert low < both.total_j < high
    cost, columns = study()
    blind = fit_serving(cost, **columns, bootstrap=0)
    none = train_and_serve(trained.ensemble, blind, loss=2.7, served_tokens=1e11)
    assert math.isnan(none.ci["total_j"][0])


def test_a_loss_that_no_size_reaches_has_no_answer(trained, serving):
    answer = train_and_serve(trained.ensemble, serving, loss=1.0, served_tokens=1e9)
    assert math.isnan(answer.params) and "no size reaches" in answer.warnings[0]


def test_a_training_law_without_energy_is_refused(serving):
    n = np.repeat([1e7, 1e8, 1e9], 4)
    d = np.tile([1e9, 3e9, 1e10, 3e10], 3)
    fit = fit_law(n, d, 1.7 + 400 / n**0.34 + 410 / d**0.28, bootstrap=0)
    with pytest.raises(OptionError, match="energy_j"):
        train_and_serve(fit.ensemble, serving, loss=2.5, served_tokens=1e9)


def test_what_lies_outside_of_what_was_served_is_told(trained, serving):
    answer = train_and_serve(
        trained.ensemble, serving, loss=2.6, served_tokens=1e9, use=Use(256, 512, 64)
    )
    assert any("batch 256 lies outside" in text for text in answer.warnings)
