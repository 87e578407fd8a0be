"""Prepare two token files from Python's own sources, and plan a campaign on a mixture of them.

Three windows in four are of the library's modules, one is of its character tables.
"""

import sys
import sysconfig
from pathlib import Path

import llem

CAMPAIGN = """\
name: mixture
target: 1e13 FLOP
budget: 2e12 FLOP
model: {context: 128}
data:
  mixture:
    - {path: modules.bin, weight: 3}
    - {path: tables.bin, weight: 1}
  packing: documents
training: {precision: fp32, rule: small}
site: laptop
"""


def main(out: str = "mixture") -> None:
    folder, library = Path(out), Path(sysconfig.get_path("stdlib"))
    sources = {"modules": library / "*.py", "tables": library / "encodings" / "*.py"}
    for name, pattern in sources.items():
        made = llem.prepare_data(
            pattern, out=folder / f"{name}.bin", held_out="4%", workers=1, replace=True
        )
        print(f"{name}: {made.documents} documents, {made.tokens} tokens, "
              f"{made.evaluation_tokens} held out")  # fmt: skip
    (folder / "campaign.yaml").write_text(CAMPAIGN)
    planned = llem.plan_campaign(
        llem.load_campaign(folder / "campaign.yaml"), out=folder / "campaign", base=folder
    )
    print(f"{len(planned.plan.runs)} runs; next: llem run {folder / 'campaign.yaml'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
