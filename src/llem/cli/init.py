"""`llem init`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llem.cli._command import note
from llem.errors import Fault, InputError, did_you_mean, typed

EXAMPLE = """  llem init                       # writes campaign.yaml
  llem init --site juwels-booster --out llama-de.yaml
  llem init --workload inference   # a study of deployments that serve a model"""

_TEXT = """\
# What is asked, and what the answer may cost. `llem plan` shows what follows from it.
name: {name}
target: {target}                # where the answer is wanted (or GPUh, kWh, EUR)
budget: {budget}                # what the experiments may cost; --budget overrides
model: {model}
data: {data}
seeds: 1
{training}site: {site}                    # one of: {sites}; or your own, see docs/sites.md
{open_keys}"""

_STUDY = """\
# Which configuration serves a model for the fewest joules? `llem plan` shows what follows from it.
name: {name}
workload: inference
models:                         # folders of weights, or configurations with random ones
{models}
backend: transformers           # or vllm, tensorrt-llm, openai, or a list
options: {options}              # of the backend; left out or null: its own default
prompts: {prompts}
arrival: batch                  # or {{rate: 2.0}}, {{poisson: 2.0}}: requests a second
sweep:
  grid: {{options.batch_size: [1, 4, 16]}}
  # zip: [{{options.precision: [fp32, bf16], options.compile: [false, true]}}]   # go along together
  # exclude: [{{when: {{options.batch_size: ">= 16"}}, reason: "does not fit"}}]
cycles: 3
order: interleaved              # or sequential, shuffled, reverse, latin-square
site: {site}                    # one of: {sites}; or your own, see docs/sites.md
{open_keys}"""
_RANDOM = """\
  tiny:
    config: {model_type: llama, hidden_size: 128, num_hidden_layers: 4, num_attention_heads: 4,
             intermediate_size: 352, vocab_size: 512, max_position_embeddings: 512}"""
_ON_DISK = "  mine: {path: models/my-model}   # config.json and *.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", default="laptop", help="default: laptop")
    parser.add_argument(
        "--workload", choices=("training", "inference"), default="training",
        help="inference: a study of deployments; default: training",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("campaign.yaml"), metavar="FILE")


def run(args: argparse.Namespace) -> int:
    from llem.campaign import load_site, site_names

    known = site_names()
    if args.site not in known:
        hint = did_you_mean(args.site, known) or f"known: {', '.join(known)}"
        raise InputError("the call", [Fault("--site", f"no site {args.site!r}", hint)])
    small = args.site == "laptop"
    left = [key for key, _ in load_site(args.site).left_open()]
    of_site = {
        "site": f"{{base: {args.site}}}" if left else args.site,
        "open_keys": f"                                # give here: {', '.join(left)}\n"
        if left
        else "",
        "sites": ", ".join(known),
    }
    text = (
        _study(of_site, small=small)
        if args.workload == "inference"
        else _TEXT.format(
            name="first",
            target="1e13 FLOP" if small else "1e22 FLOP",
            budget="1e12 FLOP" if small else "500 GPUh",
            model="{vocabulary: 256, context: 128}"
            if small
            else "{vocabulary: 32000, context: 2048}",
            # Processors have no arithmetic of 16 bits to speak of, and the recipes of large models
            # are far off for these.
            training="training: {precision: fp32, rule: small}\n" if small else "",
            data="{builtin: python-sources}"
            if small
            else "{path: tokens.bin}        # what `llem data prepare` makes of your text",
            **of_site,
        )
    )
    try:
        with open(args.out, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InputError(str(args.out), ["exists already; give another --out"]) from None
    note(f"written: {args.out}; next: {typed('llem', 'plan', args.out)}")
    return 0


def _study(of_site: dict[str, str], *, small: bool) -> str:
    """A study of random weights on a small site, of a folder of weights elsewhere."""
    return _STUDY.format(
        name="serving",
        models=_RANDOM if small else _ON_DISK,
        options="{precision: fp32}" if small else "{precision: bf16}",
        prompts="{synthetic: {input_tokens: 64, output_tokens: 32, count: 32}}"
        if small
        else "{builtin: instructions, output_tokens: 128}",
        **of_site,
    )
