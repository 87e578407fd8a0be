"""`llem fit`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem.cli._command import add_json, note, option
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder
    from llem.pipeline.serving import ServeQuestion
    from llem.scaling import Target
    from llem.scaling.answers.optimum import Prices

EXAMPLE = """  llem fit runs/first                     # a campaign folder, after aggregate
  llem fit observations.csv --target 1e24 --bootstrap 4000
  llem fit losses.csv --target "500 kWh" --target "5000 EUR" --price-per-kwh 0.2
  llem fit losses.csv --law "E + A/N^alpha + B/D^beta" --loss squares --plot
  llem fit losses.csv --compare chinchilla,chinchilla_tied
  llem fit losses.csv --exclude run7,run9 --json > fit.json
  llem fit runs/study                     # a study: what serving costs
  llem fit runs/first --serve runs/study --served-tokens 1e12 --target-loss 2.6"""

COLUMNS = """\
params (or N), tokens (D), loss (L, nats per token); where they are known
flops (C), run_id, weight, params_nonembedding, unique_tokens, energy_j,
duration_s, gpu_seconds, ranks, nodes, steps, status, reason; of intermediate
checkpoints learning_rate, annealed, warmup_tokens, family"""
LOSSES = ("huber", "absolute", "squares")
# What others call them.
LOSS_NAMES = {"lad": "absolute", "l1": "absolute", "mae": "absolute"}
LOSS_NAMES |= {"ls": "squares", "lsq": "squares", "l2": "squares", "mse": "squares"}
UNITS = ("FLOP", "GPUh", "kWh")
PLOTS_FOLDER = "fit-plots"
USE = ("--batch", "--prompt-tokens", "--answer-tokens")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from llem.scaling import law_names

    add = parser.add_argument
    add("source", type=Path, metavar="DIR|FILE.csv")
    laws = ", ".join(law_names())
    add(
        "--law",
        metavar="NAME|FORMULA",
        help=f"{laws}, or as 'E + A/N^alpha' (default: the campaign's, else chinchilla)",
    )
    add(
        "--target",
        action="append",
        default=[],
        metavar="AMOUNT",
        help="where the optimum is wanted: 1e24, 2 MWh, 500 GPUh, 5000 EUR; repeatable",
    )
    add("--exclude", default="", metavar="RUN,RUN", help="runs to leave out, by name")
    add(
        "--compare",
        action="append",
        default=[],
        metavar="LAW,LAW",
        help="rank laws by their error on the largest compute, held out; repeatable",
    )
    add(
        "--declare",
        action="append",
        default=[],
        metavar="ITEM=TEXT",
        help="answer the reporting checklist: training.dataset=FineWeb; repeatable",
    )
    add("--out", type=Path, metavar="FILE", help="write fit.json there")
    add(
        "--plot",
        nargs="?",
        const="",
        metavar="DIR",
        help=f"draw every plot as PNG and SVG (default: {PLOTS_FOLDER} beside fit.json)",
    )
    add(
        "--allow-edge-minima",
        action="store_true",
        help="fit an isoFLOP grid of which a slice has no minimum inside the sizes trained",
    )
    add_json(parser)

    add = parser.add_argument_group("how it is fitted").add_argument
    add(
        "--loss",
        type=lambda v: LOSS_NAMES.get(v, v),
        choices=LOSSES,
        default="huber",
        help="of the residuals (default: huber)",
    )
    add(
        "--space",
        choices=("log", "loss"),
        default="log",
        help="whether residuals are of the log loss or of the loss (default: log)",
    )
    add("--delta", type=float, default=1e-3, help="Huber's (default: 1e-3)")
    add(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="K",
        help="resamples for the intervals; 0: none (default: 1000)",
    )
    add("--by", choices=("run", "row"), default="run", help="what is resampled (default: run)")
    add("--level", type=float, default=0.95, help="of the intervals (default: 0.95)")
    add("--seed", type=int, default=0, help="of the resamples (default: 0)")
    add(
        "--checkpoints",
        choices=("drop", "correct", "keep"),
        default="drop",
        help="rows of a run taken before its learning rate came down (default: drop)",
    )
    add(
        "--weights",
        choices=("run", "row"),
        default="run",
        help="what counts as one where runs have several rows (default: run)",
    )

    group = parser.add_argument_group("at the target (default: the site's, where there is one)")
    add = group.add_argument
    add("--price-per-kwh", type=float, metavar="P")
    add("--price-per-gpu-hour", type=float, metavar="P")
    add("--pue", type=float, metavar="X", help="power usage effectiveness, 1.0 or more")
    add("--unique-tokens", metavar="U", help="different tokens at hand, as 300B (default: any)")
    add(
        "--exponent-error",
        type=float,
        metavar="S",
        help="the law's own error far beyond the data, in the exponent of N*; 0: none",
    )
    group = parser.add_argument_group("train and serve: the size of least energy over both")
    add = group.add_argument
    add("--serve", type=Path, metavar="STUDY", help="a study that tells what serving costs")
    add("--served-tokens", metavar="T", help="tokens that will come out, as 1e12 or 500B")
    add("--target-loss", type=float, metavar="L", help="that the model must reach, nats per token")
    add("--batch", type=float, metavar="B", help="sequences at once (default: the study's median)")
    add("--prompt-tokens", type=float, metavar="I", help="of a request (default: the study's)")
    add("--answer-tokens", type=float, metavar="O", help="of a request (default: the study's)")
    add("--where", metavar="EXPRESSION", help="of a study: these of its runs alone")
    parser.add_argument_group("columns of the CSV", COLUMNS)


def run(args: argparse.Namespace) -> int:
    options = _options(args)
    folder: CampaignFolder | None = None
    if args.source.is_dir():
        from llem.cluster import CampaignFolder
        from llem.pipeline.campaigns import is_study
        from llem.pipeline.fitting import campaign_table

        folder = CampaignFolder(args.source)
        if is_study(folder.plan_values()):
            return _study(args, folder, options)
        table = campaign_table(folder)
    else:
        from llem.pipeline.table import read_table

        table = read_table(args.source)
    if args.compare:
        from llem.cli._answer import tell_comparison
        from llem.pipeline.fitting import compare_observations

        names = ("estimator", "exclude", "checkpoints", "weights")
        laws = [law for text in args.compare for law in split_laws(text)]
        found = compare_observations(table, laws, **{name: options[name] for name in names})
        tell_comparison(found, as_json=args.json)
        return 0

    from llem.cli._answer import Progress, tell_fit

    if args.serve is not None:
        options["serve"] = _question(args, options)
    with Progress("resamples") as progress:
        if folder is not None:
            from llem.pipeline.files import FIT_FILE
            from llem.pipeline.fitting import campaign_prices, fit_campaign

            options["prices"] = campaign_prices(folder, **_late(args))
            fit = fit_campaign(folder, table=table, watch=progress, **options)
            note(f"written: {folder.results / FIT_FILE}")
        else:
            from llem.pipeline.fitting import fit_observations

            options["law"] = options["law"] or "chinchilla"
            fit = fit_observations(table, watch=progress, **options)
    place = folder.results if folder is not None else Path()
    if args.out is not None:
        from llem.cluster import write_json

        place = args.out.parent
        write_json(args.out, fit)
        note(f"written: {args.out}")
    if args.plot is not None:
        from llem.report import draw_fit

        target = Path(args.plot) if args.plot else place / PLOTS_FOLDER
        texts = {**table.texts, "run_id": [table.name(i) for i in range(table.rows)]}
        drawn = draw_fit(target, numbers=table.numbers, texts=texts, fit=fit)
        note(f"written: {len(drawn)} plots in {target}")
    tell_fit(fit, as_json=args.json)
    if "train_and_serve" in fit and not args.json:
        from llem.cli._table import indented
        from llem.report import life_lines

        print()
        indented(life_lines(fit["train_and_serve"]))
    return 0


def _study(args: argparse.Namespace, folder: CampaignFolder, options: dict[str, Any]) -> int:
    """The laws of what serving costs."""
    from llem.cli._answer import tell_fit
    from llem.pipeline.serving import fit_study

    fit = fit_study(folder, where=args.where, **_drawn(options))
    note(f"written: {folder.results / 'fit.json'}")
    if args.out is not None:
        from llem.cluster import write_json

        write_json(args.out, fit)
        note(f"written: {args.out}")
    tell_fit(fit, as_json=args.json)
    return 0


def _drawn(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[name] for name in ("bootstrap", "level", "seed")}


def _question(args: argparse.Namespace, options: dict[str, Any]) -> ServeQuestion:
    """What is to be served. Raises InputError with every fault."""
    from llem.campaign import parse_count
    from llem.cluster import CampaignFolder
    from llem.pipeline.serving import ServeQuestion, study_variants
    from llem.scaling import Use

    faults = []
    if args.served_tokens is None:
        faults.append(Fault("--served-tokens", "is needed with --serve", "as 1e12"))
    if args.target_loss is None or not args.target_loss > 0:
        faults.append(Fault("--target-loss", "is needed with --serve, above 0", "as 2.6"))
    given = (args.batch, args.prompt_tokens, args.answer_tokens)
    faults += [Fault(name, "must be 1 or more") for name, value in
               zip(USE, given, strict=True) if value is not None and not value >= 1]  # fmt: skip
    if any(v is not None for v in given) and None in given:
        hint = f"give {', '.join(USE)}, or none of them"
        faults.append(Fault("--serve", "is told a part of how a request looks", hint))
    if faults:
        raise InputError("the call", faults)
    served = float(option("--served-tokens", parse_count, args.served_tokens))
    variants, _ = study_variants(CampaignFolder(args.serve), where=args.where, **_drawn(options))
    use = Use(*given) if None not in given else None
    return ServeQuestion(variants, args.target_loss, served, use)


def split_laws(text: str) -> list[str]:
    """Names and formulas between commas; those inside parentheses belong to a formula."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth <= 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """The call as keywords of `fit_observations`. Raises InputError with every fault."""
    faults = []
    for name, wrong, message in (
        ("--bootstrap", args.bootstrap < 0, "is negative"),
        ("--delta", not args.delta > 0, "must be above 0"),
        ("--level", not 0 < args.level < 1, "must lie between 0 and 1, as 0.95"),
        ("--seed", args.seed < 0, "is negative"),
        ("--price-per-kwh", (args.price_per_kwh or 0) < 0, "is negative"),
        ("--price-per-gpu-hour", (args.price_per_gpu_hour or 0) < 0, "is negative"),
        ("--pue", args.pue is not None and not args.pue >= 1, "must be 1 or more"),
        ("--exponent-error", (args.exponent_error or 0) < 0, "is negative"),
    ):
        if wrong:
            faults.append(Fault(name, message))
    targets: list[Target] = []
    unique = None
    if args.serve is None:
        names = ("--served-tokens", "--target-loss", *USE)
        given = (vars(args)[name.removeprefix("--").replace("-", "_")] for name in names)
        both = zip(names, given, strict=True)
        faults += [Fault(name, "goes with --serve") for name, value in both if value is not None]
    for text in args.target:
        try:
            targets.append(_target(text))
        except InputError as error:
            faults += error.faults
    if args.unique_tokens is not None:
        from llem.campaign import parse_count

        try:
            unique = float(option("--unique-tokens", parse_count, args.unique_tokens))
        except InputError as error:
            faults += error.faults
    declared = {}
    for text in args.declare:
        item, equals, answer = text.partition("=")
        if not equals or not answer.strip():
            faults.append(Fault("--declare", f"{text!r}: expected section.item=text"))
        declared[item.strip()] = answer.strip()
    currencies = sorted({t.unit for t in targets if t.quantity == "money"})
    if len(currencies) > 1:
        faults.append(Fault("--target", f"prices are in one currency, not {_all(currencies)}"))
    priced = args.price_per_kwh is not None or args.price_per_gpu_hour is not None
    if currencies and not priced and not args.source.is_dir():
        hint = "give --price-per-kwh, --price-per-gpu-hour or both"
        faults.append(Fault("--target", f"{currencies[0]} buys nothing without a price", hint))
    if faults:
        raise InputError("the call", faults)
    from llem.scaling import Estimator

    return {
        "law": args.law,
        "targets": tuple(targets),
        "estimator": Estimator(args.loss, args.delta, args.space),
        "bootstrap": args.bootstrap,
        "resampling": "runs" if args.by == "run" else "rows",
        "level": args.level,
        "seed": args.seed,
        "exclude": frozenset(filter(None, map(str.strip, args.exclude.split(",")))),
        "checkpoints": args.checkpoints,
        "weights": args.weights,
        "prices": _prices(args, currencies),
        "unique_tokens": unique,
        "exponent_error": args.exponent_error,
        "declared": declared or None,
        "allow_edge_minima": args.allow_edge_minima,
    }


def _late(args: argparse.Namespace) -> dict[str, float | None]:
    return {
        "per_kwh": args.price_per_kwh,
        "per_gpu_hour": args.price_per_gpu_hour,
        "pue": args.pue,
    }


def _prices(args: argparse.Namespace, currencies: list[str]) -> Prices | None:
    given = {name: value for name, value in _late(args).items() if value is not None}
    if not given:
        return None
    from llem.scaling.answers.optimum import Prices

    currency = {"currency": currencies[0]} if currencies else {}
    return Prices(**given, **currency)  # type: ignore[arg-type]


def _target(text: str) -> Target:
    from llem.campaign import MONEY, parse_budget
    from llem.scaling import Target

    budget = option("--target", parse_budget, text)
    if budget.unit == "node-h":
        hint = "give GPUh: node hours times the GPUs of a node"
        raise InputError("the call", [Fault("--target", f"{text!r} is in node hours", hint)])
    assert budget.unit in UNITS or budget.unit in MONEY
    return Target(budget.value, budget.unit)


def _all(words: list[str]) -> str:
    return " and ".join(words)
