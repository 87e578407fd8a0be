#!/usr/bin/env python3
"""The law of serving on a real study: how far off it is on what it was not fitted to.

    python tests/benchmarks/serving_law.py                     # the table of errors, some seconds
    python tests/benchmarks/serving_law.py --coverage 200      # how often intervals hold, minutes
    python tests/benchmarks/serving_law.py --study DIR ...     # of studies that ran, in its place
    python tests/benchmarks/serving_law.py --published FILE... # and on tasks of the ML.ENERGY board

The study is `serving_ground.csv`: six transformers models of random weights (232 k to 46 M
parameters, fp32) on one core of an AMD EPYC, five batches, prompts of 16, 64 and 256 tokens,
answers of 8 and 32, 396 runs of llem's own, reduced to the seconds of their passes. What is tested
is the law of time: joules are power times that. Others worked on the machine, so beside the runs as
they were stands the best of each deployment's repeats: the least prefill, the least of the median
decoding passes. Each line is the root mean square of ln(foretold / measured), of the law and of a
power law of size, batch and lengths, each value of what is named left out in turn.

Then: a server that batches as it goes, played by that law, whose passes are told from when tokens
came; and the planner's prior on the same runs. Exit status 1 where the power law is better
anywhere, interior sizes or batches are off by more than 10 % or corners by more than 15 %, the
prior by more than its plans state, or, with `--coverage`, where intervals hold more or less often
than they say by two standard errors of the count.

Of the terms, launches were chosen by the smallest size left out: with (L + r) P for (L + 1) P it is
.09 off at r = 0.5, .06 at 1, .11 at 2; where those of passes and layers had no such floor it was
.16, and .07 to .21 with terms added that have nothing to do with it. Tried and left out: keys and
values of a layer beyond the cache (batches .074 for .085, but of every run .141 for .137); launches
of prefills of several sequences (24 deployments foretell the others with .080 for .102), for which
no cause was found; the output's weights rearranged apart from the others (batches .074, sizes .066
for .069), which the published joules cannot check.

`--published`: files `public/data/tasks/*.json` of ml-energy/leaderboard (Chung et al., The
ML.ENERGY Benchmark, NeurIPS 2025), joules of vLLM on H100 and B200, which this repository lacks.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from llem.scaling import Counts, Models, ServingLaw, Use, fit_serving

HERE = Path(__file__).parent
GROUND = HERE / "serving_ground.csv"
WANTED_INSIDE, WANTED_CORNER = 0.10, 0.15
SPLITS = (("params", "sizes"), ("batch", "batches"), ("tokens_in", "prompts"),
          ("tokens_out", "answers"))  # fmt: skip
# Of the models on the board: layers, heads of keys and values, their size, parameters, width,
# vocabulary, whether embedding and output are one table.
BOARD = {
    "Llama 3.1 8B Instruct": (32, 8, 128, 8.03e9, 4096, 128256, False),
    "Llama 3.1 70B Instruct": (80, 8, 128, 70.6e9, 8192, 128256, False),
    "Llama 3.3 70B Instruct": (80, 8, 128, 70.6e9, 8192, 128256, False),
    "Llama 3.1 405B Instruct": (126, 8, 128, 406e9, 16384, 128256, False),
    "Qwen 3 8B": (36, 8, 128, 8.19e9, 4096, 151936, False),
    "Qwen 3 14B": (40, 8, 128, 14.8e9, 5120, 151936, False),
    "Qwen 3 32B": (64, 8, 128, 32.8e9, 5120, 151936, False),
    "Gemma 3 12B": (48, 8, 256, 12.2e9, 3840, 262208, True),
    "Gemma 3 27B": (62, 16, 128, 27.4e9, 5376, 262208, True),
}

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    with open(path) as file:
        return [{k: v if k == "model" else float(v) for k, v in row.items()}
                for row in csv.DictReader(file)]  # fmt: skip


def read_study(folders: Sequence[Path]) -> list[Row]:
    """The same of studies that ran, from their records; cycles of one deployment together."""
    from llem.cluster import CampaignFolder
    from llem.records import Phase, read_rank

    rows: list[Row] = []
    for turn, folder in enumerate(folders):
        plan = json.loads((folder / "plan.json").read_text())
        for run in plan["runs"]:
            end = CampaignFolder(folder).final_end(run["run_id"]) or {}
            if end.get("status") != "completed":
                continue
            attempt = folder / "runs" / run["run_id"] / f"attempt-{end['attempt']}"
            forwards = np.sort(read_rank(attempt / "rank-00000.h5").forwards, order="t1_ns")
            took = (forwards["t1_ns"] - forwards["t0_ns"]) / 1e9
            prefill, decode = (forwards["phase"] == p for p in (Phase.PREFILL, Phase.DECODE))
            model, prompts = run["model"], run["prompts"]
            rows.append({
                "model": model["name"], "params": run["params"],
                "params_nonembedding": run["params_nonembedding"], "layers": model["layers"],
                "width": model["width"], "vocabulary": model["vocabulary"],
                "kv_per_token": 2 * model["layers"] * model["kv_heads"] * model["head_size"],
                "batch": run["effective"]["batch_size"], "tokens_in": prompts["input_tokens"],
                "tokens_out": prompts["output_tokens"], "cycle": run["seed"] + 1000 * turn,
                "prefills": int(prefill.sum()), "decodes": int(decode.sum()),
                "sequences": int(forwards["tokens_out"][decode].sum()),
                "context": int(forwards["context"][decode].sum()),
                "prefill_s": float(took[prefill].sum()),
                "prefill_least_s": float(took[prefill].min()),
                "decode_s": float(took[decode].sum()),
                "decode_middle_s": float(np.median(took[decode])),
            })  # fmt: skip
    return rows


def best_of(rows: Sequence[Row]) -> list[Row]:
    """One row for each deployment: what its repeats took at least, a prefill those of all answers
    that follow it."""
    prefill: dict[Any, float] = defaultdict(lambda: math.inf)
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        key = row["model"], row["batch"], row["tokens_in"]
        prefill[key] = min(prefill[key], row["prefill_least_s"])
        groups[*key, row["tokens_out"]].append(row)
    found = []
    for key, own in groups.items():
        decode = min(min(r["decode_middle_s"], r["decode_s"] / r["decodes"]) for r in own)
        found.append({**own[0], "prefill_s": prefill[key[:3]] * own[0]["prefills"],
                      "decode_s": decode * own[0]["decodes"]})  # fmt: skip
    return found


def columns_of(rows: Sequence[Row]) -> dict[str, Any]:
    """What `fit_serving` takes but the costs."""

    def column(name: str) -> Any:
        return np.array([row[name] for row in rows], dtype=float)

    head = column("width") * column("vocabulary")
    requests = column("prefills") * column("batch")
    tokens_in = column("tokens_in")
    return {
        "models": Models.of(
            column("params"), multiplied=column("params_nonembedding") + head, head=head,
            layers=column("layers"), width=column("width"), kv=column("kv_per_token"),
        ),
        "counts": Counts(
            prefills=column("prefills"), requests=requests, tokens_in=requests * tokens_in,
            pairs=requests * tokens_in * (tokens_in + 1) / 2, decodes=column("decodes"),
            rows=column("sequences"), context=column("context"),
        ),
        "batch": column("batch"), "tokens_in": tokens_in, "tokens_out": column("tokens_out"),
        "deployment": ["-".join(str(row[n]) for n in ("model", "batch", "tokens_in", "tokens_out"))
                       for row in rows],
    }  # fmt: skip


def fit(rows: Sequence[Row], *, apart: bool = True, **more: Any) -> ServingLaw:
    prefill, decode = (np.array([row[f"{p}_s"] for row in rows]) for p in ("prefill", "decode"))
    phases = {"prefill": prefill, "decode": decode} if apart else {}
    return fit_serving(prefill + decode, **columns_of(rows), **phases, quantity="gpu_seconds",
                       unit="s", **{"bootstrap": 0, **more})  # fmt: skip


def tell(law: ServingLaw, *, checked: bool = False) -> bool:
    """The table of a law's errors; whether they are what is wanted."""
    good = True
    errors = law.errors
    told = [f"all {errors['all']['law']:.3f} ({errors['all']['power_law']:.3f})"]
    told += [f"{p.phase} {errors[p.phase]['law']:.3f}" for p in law.parts if p.phase in errors]
    told += [f"between cycles {errors['noise']:.3f}"] if "noise" in errors else []
    print(f"    fitted: {', '.join(told)}; cache {law.cached:.2g} values")
    for name, words in SPLITS:
        found = errors.get(f"{name}_left_out")
        if found is None:
            continue
        each = found["values"]
        inside = math.sqrt(float(np.mean([v["law"] ** 2 for v in each[1:-1]])))
        corner = max(each[0]["law"], each[-1]["law"])
        values = "  ".join(f"{v['value']:.3g}: {v['law']:.2f} ({v['power_law']:.2f})" for v in each)
        print(f"    {words:<8} {found['law']:.3f} ({found['power_law']:.3f})   inside "
              f"{inside:.3f}, corners {corner:.3f}   {values}")  # fmt: skip
        good &= found["law"] < found["power_law"]
        if checked and name in ("params", "batch"):
            good &= inside < WANTED_INSIDE and corner < WANTED_CORNER
    return good


def few(rows: Sequence[Row]) -> None:
    """What small studies say of the other deployments of models within their sizes."""
    for models, batches, prompts in (
        ("ad", (1, 6, 40), (64,)), ("bdf", (1, 6, 40), (16, 256)), ("abde", (1, 6, 40), (16, 64)),
    ):  # fmt: skip
        own = [row for row in rows if row["model"] in models and row["batch"] in batches
               and row["tokens_in"] in prompts and row["tokens_out"] == 32]  # fmt: skip
        names = {(row["model"], row["batch"], row["tokens_in"], row["tokens_out"]) for row in own}
        size = [row["params"] for row in own]
        rest = [
            row for row in rows if min(size) <= row["params"] <= max(size)
            and (row["model"], row["batch"], row["tokens_in"], row["tokens_out"]) not in names
        ]  # fmt: skip
        columns = columns_of(rest)
        foretold = fit(own, judged=False).predict(columns["models"], columns["counts"])
        off = np.log(foretold / np.array([row["prefill_s"] + row["decode_s"] for row in rest]))
        print(f"  {len(own)} deployments ({len(models)} sizes, {len(prompts)} prompts) foretell "
              f"{len(rest)} others: {np.sqrt(np.mean(off**2)):.3f}")  # fmt: skip


def serve(law: ServingLaw, model: Models, *, limit: int, arrivals: Any, tokens_in: int,
          tokens_out: Any, random: np.random.Generator
          ) -> tuple[float, dict[str, float], dict[str, float]]:  # fmt: skip
    """A server that reads prompts as soon as there is room and gives every sequence a token in each
    pass: its seconds of passes, the passes as they were, and as its tokens tell them. A token is
    known up to a fifth of its pass later, since each has a stream of its own."""
    from llem.records.schema import REQUESTS, TOKENS
    from llem.results.ranks.served import passes_by_tokens

    true = dict.fromkeys(("prefills", "decodes", "sequences", "context"), 0.0)
    zero = Counts(*(np.zeros(()) for _ in range(7)))
    now = took = last = 0.0
    waiting = list(range(len(arrivals)))
    under_way: dict[int, int] = {}
    requests = np.zeros(len(arrivals), REQUESTS)
    requests["request"], requests["tokens_in"] = np.arange(len(arrivals)), tokens_in
    requests["tokens_out"] = tokens_out
    tokens = []

    def spend(counts: Counts) -> None:
        nonlocal now, took, last
        last = seconds = float(law.predict(model, counts))
        now, took = now + seconds, took + seconds

    def token(one: int, index: int) -> None:
        at = round((now + 0.2 * last * random.random()) * 1e9) + 1
        tokens.append((one, index, at))
        requests["t_last_ns"][one] = at
        if not index:
            requests["t_first_ns"][one] = at

    while waiting or under_way:
        if not under_way and arrivals[waiting[0]] > now:
            now = float(arrivals[waiting[0]])
        come = [r for r in waiting if arrivals[r] <= now][: limit - len(under_way)]
        if come:
            n = len(come)
            spend(replace(zero, prefills=np.array(1.0), requests=np.array(float(n)),
                          tokens_in=np.array(float(n * tokens_in)),
                          pairs=np.array(n * tokens_in * (tokens_in + 1) / 2)))  # fmt: skip
            true["prefills"] += 1
            waiting = [r for r in waiting if r not in set(come)]
            for one in come:
                token(one, 0)
                under_way[one] = 1
        if under_way:
            held = sum(tokens_in + made + 1 for made in under_way.values())
            spend(replace(zero, decodes=np.array(1.0), rows=np.array(float(len(under_way))),
                          context=np.array(float(held))))  # fmt: skip
            for name, by in (("decodes", 1), ("sequences", len(under_way)), ("context", held)):
                true[name] += by
            for one in list(under_way):
                token(one, under_way[one])
                under_way[one] += 1
                if under_way[one] >= tokens_out[one]:
                    del under_way[one]
    told = passes_by_tokens(np.array(tokens, TOKENS), requests)
    return took, true, {name: float(told[name]) for name in true}


def servers(law: ServingLaw, rows: Sequence[Row]) -> bool:
    """The law of a server by its own passes, and by what its tokens tell of them."""
    models = {row["model"]: columns_of([row])["models"] for row in rows}
    random = np.random.default_rng(0)
    played: dict[str, list[Row]] = {"as they were": [], "told by tokens": []}
    off = []
    for name, model in models.items():
        one = Models(*(value[0] for value in vars(model).values()))
        base = next(row for row in rows if row["model"] == name)
        for limit in (2, 6, 16, 40):
            for tokens_in in (16, 64, 256):
                for how in ("at once", "one by one"):
                    count, tokens_out = 3 * limit, random.integers(8, 40, 3 * limit)
                    pace = float(law.per_token(base["params"], Use(limit, tokens_in, 24))) * 24
                    arrivals = (np.zeros(count) if how == "at once"
                                else np.cumsum(random.exponential(1.5 * pace, count)))  # fmt: skip
                    took, true, told = serve(law, one, limit=limit, arrivals=arrivals,
                                             tokens_in=tokens_in, tokens_out=tokens_out,
                                             random=random)  # fmt: skip
                    off.append(math.log(told["decodes"] / true["decodes"]))
                    took *= math.exp(random.normal(0, 0.02))
                    for key, passes in (("as they were", true), ("told by tokens", told)):
                        played[key].append({
                            **base, **passes, "batch": limit, "tokens_in": tokens_in,
                            "tokens_out": float(tokens_out.mean()), "took": took, "count": count,
                        })  # fmt: skip
    print(f"server, passes told by tokens: decoding passes {np.sqrt(np.mean(np.square(off))):.3f} "
          "off")  # fmt: skip
    good = True
    for key, found in played.items():
        columns = columns_of(found)
        requests = np.array([row["count"] for row in found], dtype=float)
        i = columns["tokens_in"]
        columns["counts"] = replace(columns["counts"], requests=requests, tokens_in=requests * i,
                                    pairs=requests * i * (i + 1) / 2)  # fmt: skip
        columns.pop("deployment")
        server = fit_serving([row["took"] for row in found], **columns, bootstrap=0)
        # answers differ from run to run: no value of theirs is left out
        server.errors.pop("tokens_out_left_out", None)
        print(f"  passes {key}, prefill and decoding together")
        good &= tell(server)
    return good


def prior(rows: Sequence[Row]) -> bool:
    """The planner's prior on the same passes: ln(foretold / measured)."""
    from llem.campaign import Deployment, Prompts
    from llem.campaign.options import effective_options
    from llem.campaign.study.served import model_from_config
    from llem.planning.study.cost import decode_pass, prompt_pass
    from llem.planning.study.law import CPU, Timed, fit_passes

    off: dict[str, list[float]] = {"prefill": [], "decode": [], "run": []}
    timed = []
    for row in rows:
        heads = 8  # how many there are does not matter to what is foretold
        config = {
            "model_type": "llama", "hidden_size": int(row["width"]),
            "num_hidden_layers": int(row["layers"]), "num_attention_heads": heads,
            "vocab_size": int(row["vocabulary"]), "max_position_embeddings": 1024,
        }  # fmt: skip
        inner = row["params_nonembedding"] / row["layers"] - 4 * row["width"] ** 2
        config["intermediate_size"] = round(inner / row["width"] / 3 - 1)
        asked = {"precision": "fp32", "batch_size": int(row["batch"])}
        served = Deployment(
            model=model_from_config("model", config), backend="transformers", options=asked,
            effective=effective_options("transformers", asked, config=config),
            prompts=Prompts(kind="synthetic", count=int(row["batch"]),
                            input_tokens=int(row["tokens_in"]),
                            output_tokens=int(row["tokens_out"])),
        )  # fmt: skip
        took = foretold = 0.0
        for phase, work, passes in (
            ("prefill", prompt_pass(served, row["batch"], row["tokens_in"]), row["prefills"]),
            ("decode", decode_pass(served, row["batch"], row["context"] / row["sequences"]),
             row["decodes"]),
        ):  # fmt: skip
            seconds = CPU.seconds(work, precision="fp32")
            measured = row[f"{phase}_s"] / passes
            off[phase].append(math.log(seconds / measured))
            timed.append(Timed(parts=((work, "fp32", False),), seconds=measured,
                               group=str(row["model"])))  # fmt: skip
            took, foretold = took + row[f"{phase}_s"], foretold + seconds * passes
        off["run"].append(math.log(foretold / took))
    print(f"prior of the planner, stated {CPU.time_error} (x/ {math.exp(CPU.time_error):.2f})")
    for name, values in off.items():
        rms = math.sqrt(float(np.mean(np.square(values))))
        inside = np.mean(np.abs(values) < 2 * CPU.time_error)
        print(f"    {name:<8} mean {np.mean(values):+.2f}, root mean square {rms:.2f}, "
              f"{inside:.0%} within two errors")  # fmt: skip
    print(f"    calibrated, sizes left out: {fit_passes(timed, CPU).error:.3f}")
    return math.sqrt(float(np.mean(np.square(off["run"])))) < CPU.time_error


def coverage(law: ServingLaw, rows: Sequence[Row], sets: int, *, cycles: int = 2) -> bool:
    """How often 95 % intervals hold what a planted law costs, and what a further deployment does,
    where sizes, deployments and cycles are off it by chance."""
    many = [row for row in rows for _ in range(cycles)]
    columns = columns_of(many)
    features = law.features(columns["models"], columns["counts"])
    planted = {part.phase: features[:, part.at] @ law.coefficients[part.at] for part in law.parts}
    size = np.unique(columns["models"].params, return_inverse=True)[1]
    unit = np.unique(columns["deployment"], return_inverse=True)[1]
    asked = [(n, use) for n in (1e6, 5e6, 2e7, 1e8)
             for use in (Use(1, 64, 32), Use(16, 64, 32), Use(16, 256, 8))]  # fmt: skip
    exact = fit_serving(
        sum(planted.values()), **columns, **planted, bootstrap=0, judged=False
    )  # fmt: skip
    truth = []
    for n, use in asked:
        cost = exact.features(exact.family.of(n), use.of_request(np.array(n))) * exact.coefficients
        truth.append([float(cost[part.at].sum()) / use.tokens_out for part in exact.parts])
    print(f"coverage of 95 % intervals in {sets} planted studies; off by size, deployment, cycle:")
    good = True
    for by_size, by_unit, by_cycle in ((0, 0.05, 0.03), (0.05, 0.05, 0.03), (0.10, 0.05, 0.03)):
        held = np.zeros((2, sets, len(asked)))
        for seed in range(sets):
            random = np.random.default_rng(seed)
            off = {
                phase: y * np.exp(random.normal(0, by_size, size.max() + 1)[size]
                                  + random.normal(0, by_unit, unit.max() + 1)[unit]
                                  + random.normal(0, by_cycle, unit.size))
                for phase, y in planted.items()
            }  # fmt: skip
            found = fit_serving(sum(off.values()), **columns, **off, bootstrap=400, seed=seed,
                                judged=False)  # fmt: skip
            for k, (n, use) in enumerate(asked):
                further = random.normal(0, math.hypot(by_size, by_unit), len(truth[k]))
                for place, value in enumerate((sum(truth[k]), np.exp(further) @ truth[k])):
                    low, high = found.interval(n, use, deployed=bool(place))
                    held[place, seed, k] = low <= value <= high
        print(f"    {by_size:.0%}, {by_unit:.0%}, {by_cycle:.0%}")
        for words, each in zip(("the law", "a further deployment"), held, strict=True):
            # the questions to one study are not independent: the count is of studies
            share, error = each.mean(), each.mean(axis=1).std(ddof=1) / math.sqrt(sets)
            good &= abs(share - 0.95) < 2 * error
            by = each.mean(axis=0).reshape(4, 3).mean(axis=1)
            told = ", ".join(f"{n:.0e} {b:.2f}" for n, b in zip((1e6, 5e6, 2e7, 1e8), by,
                                                                strict=True))  # fmt: skip
            print(f"        {words:<21} {share:.3f} +- {error:.3f}; {told}")
    return good


def left_out_coverage(rows: Sequence[Row]) -> None:
    """How often intervals hold what deployments took that the law was not fitted to."""
    told = []
    for name, words in SPLITS:
        held, wide = [], []
        for value in sorted({row[name] for row in rows}):
            rest = [row for row in rows if row[name] != value]
            groups: dict[Any, list[Row]] = defaultdict(list)
            for row in rows:
                if row[name] == value:
                    key = tuple(row[n] for n in ("model", "batch", "tokens_in", "tokens_out"))
                    groups[key].append(row)
            law = fit(rest, judged=False, bootstrap=400)
            columns = columns_of([own[0] for own in groups.values()])
            took = np.exp([np.mean([math.log(r["prefill_s"] + r["decode_s"]) for r in own])
                           for own in groups.values()])  # fmt: skip
            draws = law.drawn_of(columns["models"], columns["counts"])
            low, high = np.quantile(draws, [0.025, 0.975], axis=1)
            held += list((low <= took) & (took <= high))
            wide += list(np.log(high / low) / 2)
        told.append(f"{words} {np.mean(held):.3f} (+- {np.median(wide):.0%})")
    print(f"    phases apart, 95 % intervals of what was left out hold: {', '.join(told)}")


def published(paths: Sequence[Path]) -> None:
    """Dense models in bf16 of the board: joules of a request, by GPU. How long prompts were it does
    not tell; their prefill is left to the terms of tokens."""
    rows = [c for p in paths for c in json.loads(p.read_text())["configurations"]
            if c["nickname"] in BOARD and c["weight_precision"] == "bfloat16"]  # fmt: skip
    for gpu in sorted({row["gpu_model"] for row in rows}):
        for one in (True, False):
            own = [r for r in rows if r["gpu_model"] == gpu and (not one or r["num_gpus"] == 1)]
            shape = np.array([BOARD[row["nickname"]] for row in own], dtype=float)
            layers, heads, each, params, width, vocabulary, tied = shape.T
            gpus, batch, out, per_token = (
                np.array([float(row[name]) for row in own])
                for name in ("num_gpus", "avg_batch_size", "avg_output_len",
                             "energy_per_token_joules")
            )  # fmt: skip
            head = width * vocabulary
            nothing = np.zeros(len(own))
            law = fit_serving(
                per_token * out,
                models=Models.of(
                    params, multiplied=params - np.where(tied > 0, 0, head), head=head,
                    # each device launches every layer, for its part of the width
                    layers=layers * gpus, width=width / gpus, kv=2 * layers * heads * each,
                ),
                counts=Counts(
                    prefills=nothing, requests=nothing + 1, tokens_in=nothing, pairs=nothing,
                    decodes=(out - 1) / batch, rows=out - 1, context=(out - 1) * out / 2,
                ),
                batch=[float(row["max_num_seqs"]) for row in own], tokens_in=nothing + 1,
                tokens_out=out, bootstrap=0,
            )  # fmt: skip
            law.errors.pop("tokens_out_left_out", None)
            print(f"ML.ENERGY, {gpu}, {'one GPU' if one else 'one to eight'}: {len(own)} "
                  f"configurations, {len(np.unique(params))} sizes")  # fmt: skip
            tell(law)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, nargs="+", help="folders of studies that ran")
    parser.add_argument("--coverage", type=int, default=0, help="planted studies for intervals")
    parser.add_argument("--published", type=Path, nargs="+", default=())
    parser.add_argument("--write", type=Path, help="where to write the reduced study")
    args = parser.parse_args()
    rows = read_study(args.study) if args.study else read(GROUND)
    if args.write:
        with open(args.write, "w") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    best = best_of(rows)
    good = True
    print("root mean square of ln(foretold / measured), of a power law in brackets")
    for words, own in (("best of repeats", best), ("every run", rows)):
        for apart in (True, False):
            phases = "prefill and decoding apart" if apart else "together"
            print(f"  {words}, {len(own)} rows, {phases}")
            good &= tell(fit(own, apart=apart), checked=apart and own is best)
        left_out_coverage(own)
    few(best)
    law = fit(best, judged=False)
    good &= servers(law, best)
    good &= prior(best)
    if args.coverage:
        good &= coverage(law, best, args.coverage)
    if args.published:
        published(args.published)
    print("as wanted" if good else "NOT as wanted")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
