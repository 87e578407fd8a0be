"""The campaign of laptop.yaml from Python: plan, run, fit, and ask for the optimum."""

import sys
from pathlib import Path

import llem


def main(campaign: str = "laptop.yaml", out: str = "laptop-campaign") -> None:
    path = Path(__file__).parent / campaign
    planned = llem.plan_campaign(llem.load_campaign(path), out=out, base=path.parent)
    print(f"{len(planned.plan.runs)} runs in {planned.folder.root}")
    llem.run_campaign(planned.folder, planned.plan)
    done = llem.finish(planned.folder)
    if done.fit is None:
        sys.exit(done.reason)
    best = done.fit["optima"][0]
    print(f"{best['params']:.3g} parameters on {best['tokens']:.3g} tokens: {done.report}")


if __name__ == "__main__":
    main(*sys.argv[1:])
