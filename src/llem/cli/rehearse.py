"""`llem rehearse`."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llem._numerals import brief, percent
from llem.cli._answer import Progress
from llem.cli._command import add_json, asked_budget, note, option, print_json
from llem.cli.plan import add_waves, find_campaign, in_waves
from llem.errors import Fault, InputError, did_you_mean

if TYPE_CHECKING:
    from llem.pipeline import Rehearsed, Repeated
    from llem.planning import Plan
    from llem.rehearsal import Attempt, Planted, World

EXAMPLE = """  llem rehearse campaign.yaml               # played in a minute, then fitted
  llem rehearse runs/first --instant --out /tmp/rehearsal
  llem rehearse campaign.yaml --law "E=1.7,A=400,B=410,alpha=.34,beta=.28"
  llem rehearse campaign.yaml --speed 3600  # an hour of it each second
  llem rehearse campaign.yaml --repeat 200  # what would the answer be worth?"""

# How long a rehearsal takes to watch, where nothing else is asked for, seconds.
SHOW_S = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "campaign", nargs="?", type=Path, metavar="CAMPAIGN.yaml|DIR",
        help="a campaign, or the folder of a plan (which stays as it is)",
    )  # fmt: skip
    parser.add_argument("--budget", help="as in `llem plan`, for a CAMPAIGN.yaml")
    parser.add_argument("--runs", type=int, metavar="K", help="as in `llem plan`")
    add_waves(parser)
    parser.add_argument(
        "--law", metavar="NAME|E=..,A=..,..",
        help="the law to plant: chinchilla, hoffmann, muennighoff, or a law's parameters "
        "(default: chinchilla, scaled to the plan where its models are very small)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--noise", type=float, metavar="SD", help="of log loss between seeds")
    parser.add_argument("--failures", choices=("on", "off"), default="on")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--instant", action="store_true", help="as fast as files can be written")
    pace.add_argument("--speed", type=float, metavar="X", help="seconds of the campaign a second")
    parser.add_argument("--plain", action="store_true", help="lines, also on a terminal")
    parser.add_argument(
        "--loop", action="store_true",
        help="play seed after seed on the screen, write nothing, until Ctrl-C",
    )  # fmt: skip
    parser.add_argument("--exit-after", metavar="TIME", help="leave the show then: 90s, 10min, 2h")
    parser.add_argument("--follow", metavar="RUN", help="the run to tell all of")
    parser.add_argument(
        "--interval", type=float, metavar="SECONDS", help="between samples of power"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: <name>-rehearsal")
    parser.add_argument(
        "--replace", action="store_true", help="put it in an earlier rehearsal's place"
    )
    parser.add_argument(
        "--repeat", type=int, metavar="K",
        help="play it K times in memory and tell how good the answers are; writes nothing",
    )  # fmt: skip
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    law = _check(args)
    plan, name, code = _plan(args)
    if args.follow is not None and args.follow not in plan.by_id:
        hint = did_you_mean(args.follow, list(plan.by_id))
        raise InputError("the call", [Fault("--follow", f"there is no run {args.follow!r}", hint)])
    make = _world_of(args, plan, law)
    if args.repeat is not None:
        return _repeat(args, make, code)
    if args.loop:
        return _loop(args, make, code)
    return _play(args, make(args.seed), args.out or Path(f"{name}-rehearsal"), code)


def _check(args: argparse.Namespace) -> Planted | None:
    """The law that was asked for. Raises InputError with all that is wrong with the call."""
    from llem.rehearsal import planted

    law: Planted | None = None
    faults: list[Fault | str] = []
    if args.law:
        try:
            law = planted(args.law)
        except InputError as error:
            faults += error.faults
    for name, least in (("runs", 1), ("repeat", 2)):
        value = getattr(args, name)
        if value is not None and value < least:
            faults.append(Fault(f"--{name}", f"{value} is less than {least}"))
    for name in ("speed", "interval"):
        value = getattr(args, name)
        if value is not None and not value > 0:
            faults.append(Fault(f"--{name}", f"{value:g} is not above 0"))
    if args.noise is not None and not 0 <= args.noise < 1:
        faults.append(
            Fault("--noise", f"{args.noise:g} is not in 0 to 1", "0.005 is half a percent")
        )
    if args.seed < 0:
        faults.append(Fault("--seed", f"{args.seed} is below 0"))
    if args.repeat is not None:
        for name in ("out", "speed", "instant", "replace", "interval", "follow", "loop"):
            if getattr(args, name):
                faults.append(Fault(f"--{name}", "goes with no --repeat, which writes nothing"))
    if args.loop:
        for name in ("out", "instant", "replace", "interval", "follow", "json"):
            if getattr(args, name):
                faults.append(Fault(f"--{name}", "goes with no --loop, which only shows"))
    if faults:
        raise InputError("the call", faults)
    return law


def _plan(args: argparse.Namespace) -> tuple[Plan, str, Path]:
    """The plan to play, a name for what comes of it, and where the user's own code lies."""
    from llem.cluster import CampaignFolder
    from llem.pipeline import plan_campaign

    if args.campaign is not None and args.campaign.is_dir():
        given = [
            f"--{name}" for name in ("budget", "runs", "waves") if getattr(args, name) is not None
        ]
        if given:
            text = "is for a CAMPAIGN.yaml; the folder has its plan"
            raise InputError("the call", [Fault(name, text) for name in given])
        plan = CampaignFolder(args.campaign).load_trainings()
        return replace(plan, rehearsal=None), str(args.campaign).rstrip("/"), args.campaign / "code"
    budget = asked_budget(args.budget)
    campaign, base = find_campaign(args.campaign)
    campaign = in_waves(campaign, args.waves)
    planned = plan_campaign(
        campaign, out=Path(campaign.name), base=base, budget=budget, runs=args.runs, write=False
    )
    return planned.plan, campaign.name, base


def _world_of(args: argparse.Namespace, plan: Plan, law: Planted | None) -> Callable[[int], World]:
    """World k: same plan and law, another seed."""
    from llem.rehearsal import Failures, World, planted_for

    law = law or planted_for([r.run for r in plan.runs.replicates])
    failures = Failures() if args.failures == "on" else Failures.none()
    options: dict[str, Any] = {} if args.noise is None else {"noise": args.noise}
    return lambda seed: World(plan=plan, planted=law, seed=seed, failures=failures, **options)


def _play(args: argparse.Namespace, world: World, out: Path, code: Path) -> int:
    from llem.pipeline import finish, rehearse
    from llem.rehearsal import followed

    note(
        f"rehearsal of {world.plan.campaign.name}, seed {world.seed}: planted {world.planted.text}"
    )
    with Progress("writing records") as bar:
        done = 0

        def watch(_attempt: object) -> None:
            nonlocal done
            done += 1
            bar(done, max(done + 1, len(world.plan.runs)))

        played = rehearse(
            world, out=out, replace_old=args.replace, interval_s=args.interval, code=code,
            watch=watch,
        )  # fmt: skip
    world = played.world
    if played.unplanned:
        note(played.unplanned)
    if played.interval_s > (args.interval or played.asked_s):
        note(f"samples every {played.interval_s:g} s, to keep the records small (--interval)")
    if not args.json:
        follow = args.follow or followed(played.attempts)
        if not _show(args, world, played.attempts, follow, deadline=_deadline(args)):
            note(f"left the show; all of it was written before: {played.folder.root}")
            return 0
    done_with = finish(played.folder)
    if args.json:
        print_json(_told(played, done_with.fit, done_with.reason, str(done_with.report)))
        return 0
    for problem in done_with.problems:
        note(f"problem: {problem}")
    _ending(played, done_with.fit)
    if done_with.fit is None:
        note(f"no law: {done_with.reason}")
    print(f"\nreport: {done_with.report}")
    return 0


def _deadline(args: argparse.Namespace) -> float:
    """When the show is to be left, by the monotonic clock."""
    from llem.campaign import parse_duration

    if not args.exit_after:
        return math.inf
    return time.monotonic() + float(option("--exit-after", parse_duration, args.exit_after))


def _loop(args: argparse.Namespace, make: Callable[[int], World], code: Path) -> int:
    from llem.pipeline import play_waves
    from llem.rehearsal import followed

    deadline = _deadline(args)
    for seed in itertools.count(args.seed):
        world, attempts, _ = play_waves(make(seed), code=code)
        note(f"rehearsal of {world.plan.campaign.name}, seed {seed}: planted {world.planted.text}")
        if not _show(args, world, attempts, followed(attempts), deadline=deadline):
            break
    return 0


def _show(
    args: argparse.Namespace,
    world: World,
    attempts: Sequence[Attempt],
    follow: str,
    *,
    deadline: float,
) -> bool:
    """Play it on the screen, or as lines where there is none; False where it was left early."""
    from llem.cli._rehearsal import below, lines_of, play_on
    from llem.cli._status import console
    from llem.rehearsal import Film, Pace, close_ups, tell

    events = tell(world, attempts, follow=follow)
    film = Film(world, attempts, follow=follow)
    if args.speed:
        pace = Pace.even(film.until_s, args.speed)
    else:
        pace = close_ups(attempts, follow=follow, until_s=film.until_s, show_s=SHOW_S)
    screen = console()
    if sys.stdout.isatty() and not (args.plain or args.instant):
        return play_on(screen, world, film, events, pace=pace, deadline=deadline)
    begun = time.monotonic()
    for event in events:
        if not args.instant:
            ahead = pace.when(event.t_s) - (time.monotonic() - begun)
            if ahead > 0:
                time.sleep(min(ahead, max(0.0, deadline - time.monotonic())))
        if time.monotonic() >= deadline:
            return False
        told = lines_of(event, screen.width if sys.stdout.isatty() else 0)
        print(*told, *below(event, screen.width), sep="\n", flush=not args.instant)
    return True


def _told(
    played: Rehearsed, fit: dict[str, Any] | None, reason: str, report: str
) -> dict[str, Any]:
    from collections import Counter

    return {
        "rehearsal": {**played.world.mark(), "planted": played.world.planted.to_dict()},
        "folder": str(played.folder.root),
        "attempts": dict(Counter(a.status for a in played.attempts)),
        "duration_s": max(a.t1_s for a in played.attempts),
        "recovered": recovered(played, fit),
        "fit": fit,
        "reason": reason,
        "report": report,
    }


def recovered(played: Rehearsed, fit: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Planted and fitted parameters side by side, where the fitted law is the planted one."""
    planted = played.world.planted
    if fit is None or fit["law"] != planted.law.name:
        return []
    rows = []
    for name, true in planted.params.items():
        low, high = (fit["ci"].get("params") or {}).get(name) or (None, None)
        inside = None if low is None or high is None else low <= true <= high
        rows.append({"name": name, "planted": true, "fitted": fit["params"][name], "low": low,
                     "high": high, "inside": inside})  # fmt: skip
    return rows


def _ending(played: Rehearsed, fit: dict[str, Any] | None) -> None:
    from collections import Counter

    from llem._numerals import format_duration
    from llem.cli._answer import tell_fit

    counts = Counter(a.status for a in played.attempts)
    words = ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))
    end_s = max(a.t1_s for a in played.attempts)
    print(
        f"\n{len(played.attempts)} attempts ({words}) in {format_duration(end_s)} of the campaign"
    )
    if fit is None:
        return
    print()
    tell_fit(fit, as_json=False)
    if rows := recovered(played, fit):
        print("\nplanted and found again")
        for row in rows:
            interval = "no interval"
            if row["inside"] is not None:
                held = "holds it" if row["inside"] else "MISSES it"
                interval = f"95 % {brief(row['low'])} to {brief(row['high'])} {held}"
            print(f"  {row['name']:8} {row['planted']:10.5g} {row['fitted']:10.5g}  {interval}")


def _repeat(args: argparse.Namespace, make: Callable[[int], World], code: Path) -> int:
    from llem.pipeline import repeat_rehearsal

    with Progress("rehearsing") as bar:
        found = repeat_rehearsal(lambda k: make(args.seed + k), args.repeat, code=code, watch=bar)
    if args.json:
        print_json({"rehearsal": make(args.seed).mark(), **found.to_dict()})
        return 0
    _tell_repeated(found, make(args.seed))
    return 0


def _tell_repeated(found: Repeated, world: World) -> None:
    from llem._numerals import format_count, format_flops, format_gpu_hours, grouped
    from llem.cli._table import indented

    target = found.truth["target_flops"]
    indented(
        [
            f"REHEARSED {found.repeats} times: planted {world.planted.text}, noise {world.noise:g}",
            (
                f"at the target of {format_flops(target)} FLOP the planted law's optimum is "
                f"{format_count(found.truth['params'])} parameters with a loss of "
                f"{found.truth['loss']:.4f}"
            ),
            "",
        ]
    )
    names = ("bias", "sd", "told se", "held", "promised", "allowed", "held")
    print(
        " " * 9 + "".join(f"{n:>{w}}" for n, w in zip(names, (9, 9, 9, 9, 10, 9, 9), strict=True))
    )
    for name, label in (("params", "log N*"), ("loss", "log loss")):
        row = found.figures[name]
        print(
            f"{label:9}{row['bias']:+9.4f}{row['sd']:9.4f}{row['told_se']:9.4f}"
            f"{percent(row['coverage'], places=1):>9}{row['promised_se']:10.4f}"
            f"{row['allowed_se']:9.4f}"
            f"{percent(row['allowed_coverage'], places=1):>9}"
        )
    print()
    indented(
        [
            "bias, sd: of the answers.",
            "told se, promised: of noise alone, by the fits and the plan.",
            (
                "allowed: with the fit's allowance for a law that is not quite right, which a "
                "rehearsal, where the law is right, does not need."
            ),
            "held: share of 95 % intervals with the truth.",
        ]
    )
    lost = found.repeats - sum(found.failed.values())
    print(f"\na law was found in {lost} of {found.repeats}")
    for reason, count in found.failed.items():
        print(f"  {count} without: {reason}")
    for name, count in found.unidentified.items():
        print(f"  {name} was not identified in {percent(count / found.repeats, places=1)}")
    plan, waves = world.plan, world.plan.campaign.waves
    planned = f"planned {grouped(plan.totals['gpu_hours'], 4)}"
    if waves > 1:
        planned = f"{waves} waves within {plan.budget}"
    indented(
        [
            (
                f"runs that completed: {found.completed_runs:.1f} of {found.runs}; "
                f"{grouped(found.gpu_hours[0], 4)} +- {format_gpu_hours(found.gpu_hours[1])} "
                f"({planned}); {grouped(found.days[0])} +- {grouped(found.days[1], 2)} d"
            )
        ]
    )
