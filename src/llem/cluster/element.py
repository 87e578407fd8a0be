"""What runs inside a job: one process per rank, or one sampler per node, of one array element.

    python -m llem.cluster.element --manifest jobs/A.jsonl --element 3 [--sampler]

The working directory is the campaign folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from llem.cluster.disk.folder import CampaignFolder
from llem.cluster.job.environment import sampler_options, socket_path
from llem.cluster.job.rank import Rank


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="llem.cluster.element")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--element", type=int, required=True)
    parser.add_argument("--sampler", action="store_true", help="be the node's sampler, not a rank")
    args = parser.parse_args(argv)
    element = read_element(args.manifest, args.element)
    # Before anything that reads them is imported; as data, they never met a shell.
    os.environ.update(element["environment"])
    if args.sampler:
        return _sample(element)
    return Rank(element, CampaignFolder(Path.cwd())).main()


def read_element(manifest: Path, index: int) -> dict[str, Any]:
    """Line `index` of a manifest."""
    with open(manifest, encoding="utf-8") as file:
        for number, line in enumerate(file):
            if number == index:
                values: dict[str, Any] = json.loads(line)
                return values
    raise SystemExit(f"{manifest} has no element {index}")


def _sample(element: dict[str, Any]) -> int:
    from llem.energy.sampler import main as sampler_main

    # Outlives the ranks' own checkpoints when the job is asked to leave.
    own = ["--socket", str(socket_path()), "--term-grace", "30"]
    interval = ["--interval", repr(element["energy"]["interval_s"])]
    return sampler_main([*own, *interval, *sampler_options(element)])


if __name__ == "__main__":
    sys.exit(main())
