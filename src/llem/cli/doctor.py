"""`llem doctor`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from llem.cli._command import add_json, note, print_json
from llem.errors import Fault, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llem.campaign import Site
    from llem.cluster.doctor import Check

EXAMPLE = """  llem doctor                            # for runs on this machine
  llem doctor --site lumi-g              # a name, a campaign or its folder
  llem doctor --site campaign.yaml --job # and two nodes, from inside the image
  llem doctor --site runs/first --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--site", default="laptop", metavar="S",
        help="a site profile's name, a CAMPAIGN.yaml, or a campaign folder (default: laptop)",
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="where campaigns would lie (default: here)")
    parser.add_argument(
        "--job", action="store_true", help="submit a job of minutes that looks at nodes, too"
    )
    parser.add_argument("--nodes", type=int, metavar="N", help="of that job (default: 2, or 1)")
    parser.add_argument(
        "--wait", type=float, default=600, metavar="S", help="for that job, seconds (default: 600)"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:

    from llem.cluster.doctor import examine, examine_job

    site, digest, base = named(args.site)
    faults = []
    if args.job and site.executor != "slurm":
        faults.append(Fault("--job", f"the site {site.name} has no scheduler: it runs here"))
    if args.nodes is not None and not 1 <= args.nodes <= site.nodes:
        faults.append(Fault("--nodes", f"{args.nodes}, and the site allows 1 to {site.nodes}"))
    if faults:
        raise InputError("the call", faults)
    folder = args.folder or base
    checks = examine(site, folder=folder, planned_digest=digest)
    if args.job:
        checks += examine_job(site, folder=folder, nodes=args.nodes, wait_s=args.wait, say=note)
    return tell_checks(checks, as_json=args.json)


def named(text: str) -> tuple[Site, str, Path]:
    """The site, the digest of the image that a plan there was made with, and its folder.

    Raises InputError.
    """
    from llem.campaign import load_any_campaign, load_site, site_names, site_of
    from llem.cluster import CampaignFolder

    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        return site_of(load_any_campaign(path)), "", path.parent
    # A folder may well be called like the site that its campaign ran on: a name is a site's.
    named = text in site_names()
    if not named and path.is_dir() and (path / "plan.json").is_file():
        folder = CampaignFolder(path)
        plan = folder.load_plan()
        manifest = folder.manifest(plan.arrays[0].name)
        first = (
            manifest.read_text(encoding="utf-8").partition("\n")[0] if manifest.is_file() else ""
        )
        return plan.site, json.loads(first)["image_digest"] if first else "", path
    return load_site(text), "", Path()


def tell_checks(checks: Sequence[Check], *, as_json: bool) -> int:
    """All checks; the exit status."""
    from dataclasses import asdict

    from llem.cluster.check import FAIL

    failed = any(check.state == FAIL for check in checks)
    if as_json:
        print_json({"ok": not failed, "checks": [asdict(check) for check in checks]})
    else:
        show_checks(checks)
    return 1 if failed else 0


def show_checks(checks: Sequence[Check]) -> None:
    """Print checks as lines `[ok] name  seen`, each remedy below, machine by machine."""
    width = max(len(check.name) for check in checks)
    several = len({check.where for check in checks}) > 1
    where = ""
    for check in checks:
        if several and check.where != where:
            where = check.where
            print(f"{where}:")
        print(f"[{check.state:>4}] {check.name:<{width}}  {check.seen}")
        if check.remedy:
            print(f"       {'':<{width}}  -> {check.remedy}")
