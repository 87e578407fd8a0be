"""`llem submit`."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING

from llem.cli._command import (
    INTERRUPTED,
    add_folder,
    add_json,
    add_yes,
    confirm,
    note,
    print_json,
)
from llem.errors import typed

if TYPE_CHECKING:
    from llem.cluster import CampaignFolder, LocalOutcome, Submission, Submitted
    from llem.planning import AnyPlan

EXAMPLE = """  llem submit runs/first
  llem submit runs/first --yes         # more than 100 GPU-hours are confirmed
  llem submit runs/first --dry-run     # print the scripts; SLURM is not asked"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_folder(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be submitted")
    parser.add_argument("--no-finish", action="store_true", help="no job that fits at the end")
    add_yes(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from llem.cluster import CampaignFolder, submit

    folder = CampaignFolder(args.dir)
    plan = folder.load_plan()
    if args.dry_run:
        return _dry_run(folder, plan, as_json=args.json)
    confirm_spending(folder, plan, yes=args.yes)
    if plan.site.executor == "local":
        return run_here(folder, plan, as_json=args.json)
    done = submit(folder, plan, finish=not args.no_finish)
    if not done.new:
        _tell_undone(folder, plan)
    return tell(done, args)


def _tell_undone(folder: CampaignFolder, plan: AnyPlan) -> None:
    """Say what only `llem resubmit` submits: what was submitted before, and has ended undone."""
    from llem.cluster import campaign_state, summarise

    tally = summarise(folder, plan, campaign_state(folder, plan)).tally
    words = [
        f"{n} {what}" for n, what in ((tally.stopped, "stopped"), (tally.failed, "failed")) if n
    ]
    if words:
        runs = "runs" if tally.stopped + tally.failed > 1 else "run"
        note(f"{' and '.join(words)} {runs}: `llem resubmit {folder.root}` takes them up again")


def confirm_spending(folder: CampaignFolder, plan: AnyPlan, *, yes: bool) -> None:
    """Ask before much is spent: for what was not submitted before. Raises InputError."""
    from llem.cluster import Ledger

    ledger = Ledger.read(folder)
    names = [
        name
        for array in plan.arrays
        for index in ledger.never_submitted(array.name, len(array.elements), 0)
        for name in array.elements[index]
    ]
    hours = sum(plan.by_id[name].predicted.gpu_hours for name in names)
    confirm(hours, what=f"{len(names)} run{'s' if len(names) > 1 else ''}", yes=yes)


def tell(done: Submission, args: argparse.Namespace) -> int:
    """Which jobs were submitted now, and which before, and what waits; the exit status."""
    if args.json:
        print_json(
            {
                "new": job_ids(done.new),
                "before": job_ids(done.before),
                "waiting": {"elements": done.waiting, "reason": done.reason},
            }
        )
    else:
        for job in done.new:
            count = "" if job.elements is None else f", {len(job.elements)} elements"
            print(f"{job.name}: job {job.job_id}{count}")
        for name, ids in job_ids(done.before).items():
            print(f"{name}: submitted before, job {' '.join(ids)}")
    if done.waiting:
        note(f"{done.waiting} elements wait ({done.reason}): the same call again submits them")
    note(f"next: {typed('llem', 'status', args.dir)}")
    return 0


def job_ids(jobs: Iterable[Submitted]) -> dict[str, list[str]]:
    """The jobs of each array, oldest first."""
    found: dict[str, list[str]] = {}
    for job in jobs:
        found.setdefault(job.name, []).append(job.job_id)
    return found


def _dry_run(folder: CampaignFolder, plan: AnyPlan, *, as_json: bool) -> int:
    scripts = [folder.script(array.name) for array in plan.arrays] + [folder.script("finish")]
    if plan.site.executor == "local":
        scripts = [folder.manifest(array.name) for array in plan.arrays]
    if as_json:
        print_json({"scripts": {p.name: p.read_text() for p in scripts}})
        return 0
    for path in scripts:
        print(f"# --- {path}")
        print(path.read_text())
    return 0


def run_here(folder: CampaignFolder, plan: AnyPlan, *, as_json: bool) -> int:
    """Run what is not settled on this machine, showing progress; the exit status."""
    from llem.cli._progress import watching
    from llem.cli._status import both
    from llem.cluster import Notifier, campaign_state, run_locally

    notifier = Notifier(folder, plan, note)
    with watching(folder, plan) as watch:
        outcome = run_locally(folder, plan, watch=both(watch, notifier))
    state = campaign_state(folder, plan)
    if as_json:
        print_json(state.to_dict())
    else:
        note(", ".join(f"{n} {status}" for status, n in state.counts.items()))
    return local_status(outcome, folder)


def local_status(outcome: LocalOutcome, folder: CampaignFolder, *, again: str = "") -> int:
    """Say what failed or was interrupted on the local executor; the exit status.

    `again` is the command that goes on, where that is not `llem submit`.
    """
    for name, log in outcome.failed:
        note(f"element {name} failed; the end of {log}:")
        tail = log.read_text(errors="replace").splitlines()[-5:] if log.is_file() else []
        for line in tail:
            note(f"  {line}")
    if outcome.interrupted:
        same = f"the same `{again}`" if again else f"`{typed('llem', 'submit', folder.root)}`"
        note(f"interrupted; finished runs are kept: {same} goes on")
        return INTERRUPTED
    return 1 if outcome.failed else 0
