"""`llem init`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llem.cli._command import note
from llem.errors import Fault, InputError, did_you_mean

EXAMPLE = """  llem init                       # writes campaign.yaml
  llem init --site juwels-booster --out llama-de.yaml"""

_TEXT = """\
# What is asked, and what the answer may cost. `llem plan` shows what follows from it.
name: {name}
target: {target}                # where the answer is wanted (or GPUh, kWh, EUR)
budget: {budget}                # what the experiments may cost; --budget overrides
model: {model}
data: {data}
seeds: 1
site: {site}                    # one of: {sites}; or your own, see docs in the README
{open_keys}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", default="laptop", help="default: laptop")
    parser.add_argument("--out", type=Path, default=Path("campaign.yaml"), metavar="FILE")


def run(args: argparse.Namespace) -> int:
    from llem.campaign import load_site, site_names

    known = site_names()
    if args.site not in known:
        hint = did_you_mean(args.site, known) or f"known: {', '.join(known)}"
        raise InputError("the call", [Fault("--site", f"no site {args.site!r}", hint)])
    small = args.site == "laptop"
    left = [key for key, _ in load_site(args.site).left_open()]
    text = _TEXT.format(
        name="first",
        target="1e13 FLOP" if small else "1e22 FLOP",
        budget="1e12 FLOP" if small else "500 GPUh",
        model="{vocabulary: 256, context: 128}" if small else "{vocabulary: 32000, context: 2048}",
        data="{builtin: python-sources}"
        if small
        else "{path: tokens.bin}        # what `llem data prepare` makes of your text",
        site=f"{{base: {args.site}}}" if left else args.site,
        open_keys=f"                                # give here: {', '.join(left)}\n"
        if left
        else "",
        sites=", ".join(known),
    )
    try:
        with open(args.out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(str(args.out), ["exists already; give another --out"]) from None
    note(f"written: {args.out}; next: llem plan {args.out}")
    return 0
