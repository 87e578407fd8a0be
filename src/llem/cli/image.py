"""`llem image`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llem.cli._command import note, print_json
from llem.errors import typed

EXAMPLE = """  llem image build --kind cuda --out llem-cuda.sif
  llem image build --wheelhouse wheels/ --base base.sif --out llem.sif # offline
  llem image build --kind vllm --out llem-vllm.sif   # vllm-cpu: without GPUs
  llem image verify llem-cpu.sif"""

# Those of `llem.cluster.image`, which is imported only to build one.
KINDS = ("cpu", "cuda", "vllm", "vllm-cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="build|verify")
    build = actions.add_parser("build", help="build an image as an ordinary user")
    build.add_argument("--out", type=Path, required=True, metavar="IMAGE.sif")
    build.add_argument("--kind", choices=KINDS, default="cuda",
                       help="default: cuda; vllm: what the backend vllm serves with")  # fmt: skip
    build.add_argument("--wheelhouse", type=Path, metavar="DIR", help="wheels; nothing is fetched")
    build.add_argument("--index", metavar="URL",
                       help="a package index in the place of PyPI: a site's mirror")  # fmt: skip
    build.add_argument("--base", metavar="IMAGE", help="a SIF, or a name in a registry")
    build.add_argument("--squash-args", metavar="ARGS",
                       help="for mksquashfs: '-comp zstd -Xcompression-level 3'")  # fmt: skip
    verify = actions.add_parser("verify", help="look into an image")
    verify.add_argument("image", type=Path, metavar="IMAGE.sif")
    for action in (build, verify):
        action.add_argument("--runtime", choices=("apptainer", "singularity"), default="apptainer")
        action.add_argument(
            "--json", action="store_true", help="print JSON alone on standard output"
        )


def run(args: argparse.Namespace) -> int:
    from llem.cli.doctor import tell_checks
    from llem.cluster.image import build_image, verify_image

    if args.action == "build":
        build_image(
            args.out, kind=args.kind, wheelhouse=args.wheelhouse, base=args.base,
            index=args.index, runtime=args.runtime, squash_args=args.squash_args, say=note,
        )  # fmt: skip
        note(f"written: {args.out}; next: {typed('llem', 'image', 'verify', args.out)}")
        if args.json:
            print_json({"image": str(args.out)})
        return 0
    checks = verify_image(args.image, runtime=args.runtime)
    return tell_checks(checks, as_json=args.json)
