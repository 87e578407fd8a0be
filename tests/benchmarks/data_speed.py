#!/usr/bin/env python3
"""How fast data are read in training, and how fast text becomes tokens.

    python tests/benchmarks/data_speed.py                   # about 4 minutes
    python tests/benchmarks/data_speed.py --quick           # about 1 minute
    python tests/benchmarks/data_speed.py --only loader     # or prepare

The loader: what `Windows.batch` reads in a processor second, against what the smallest training of
the built-in campaign (13 thousand parameters, vocabulary 256) consumes in one, on one thread of the
same process and in the same run. Windows of 128 to 4096 tokens; ids of one, two and four bytes; a
mixture of three files; documents kept whole. Batches of 16,384 tokens. Wanted: 50 times.

`llem data prepare`: megabytes of text a processor second of all processes, by one worker and by
two, against a plain loop in this process that parses the same JSON Lines, encodes each text with
the same tokenizer, and writes the ids: it neither hashes nor splits nor counts. Wanted: with a BPE
at least .95 of the loop by one worker, and .85 by two, which each read the tokenizer. Bytes are no
more than copied: there the second pass, two hashes and the start of workers show, and are told as
they are.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent / "src")]
# Workers are processes of their own.
os.environ["PYTHONPATH"] = str(TESTS.parent / "src")

import numpy as np

import llem
from llem.campaign import Decoder, Layout, Predicted, Recipe, Run, TokenData, mixture_of
from llem.campaign.data.prepared import index_of
from llem.campaign.data.tokenfile import token_file, write_tokens
from llem.training.tokens.data import Windows, share_of

CONTEXTS = (128, 512, 1024, 2048, 4096)
DTYPES = ("uint8", "uint16", "uint32")
BATCH_TOKENS = 16_384
FILE_TOKENS = 1 << 25
LOADER_WANTED = 50.0
PREPARE_WANTED = {("bpe", 1): 0.95, ("bpe", 2): 0.85}
VOCABULARY = 8192


def make_run(data: TokenData, context: int, steps: int) -> Run:
    """The smallest model that the built-in campaign trains, on windows of `context`."""
    model = Decoder(layers=2, width=24, heads=1, mlp_width=64, vocabulary=256, context=context)
    return Run(
        model=model, tokens=steps * BATCH_TOKENS, steps=steps, seed=1,
        recipe=Recipe(batch_tokens=BATCH_TOKENS, learning_rate=0.01, warmup_steps=1),
        data=data, layout=Layout(micro_batch=BATCH_TOKENS // context),
        predicted=Predicted(duration_s=1, gpu_hours=1, energy_j=1, memory_bytes=1),
    )  # fmt: skip


def loader_speed(run: Run, seconds: float) -> float:
    """Tokens that are read in a processor second."""
    windows, share = Windows(run), share_of(run, rank=0, ranks=1)
    step = tokens = 0
    began = time.process_time()
    while (spent := time.process_time() - began) < seconds:
        tokens += windows.batch(step, share).tokens
        step += 1
    return tokens / spent


def training_speed(data: TokenData, context: int, steps: int, folder: Path) -> float:
    """Tokens that a training consumes in a processor second, its start and end left out."""
    from llem.training import start_world, train

    spent = []
    with start_world() as world:
        # The first brings the libraries in and fills the caches.
        for count in (2, 4, 4 + steps):
            run = make_run(data, context, count)
            place = folder / f"{context}-{count}"
            began = time.process_time()
            train(run, attempt_dir=place / "a", checkpoints_dir=place / "c", world=world, meta={})
            spent.append(time.process_time() - began)
    return steps * BATCH_TOKENS / (spent[2] - spent[1])


def loader(folder: Path, quick: bool) -> bool:
    contexts = (128, 4096) if quick else CONTEXTS
    seconds, steps = (0.3, 6) if quick else (1.0, 20)
    rng = np.random.default_rng(0)
    data: dict[str, TokenData] = {}
    for dtype in DTYPES:
        path = folder / f"{dtype}.bin"
        write_tokens(path, rng.integers(0, 256, FILE_TOKENS).astype(dtype), dtype=dtype)
        data[dtype] = token_file(path, dtype=dtype, evaluation_tokens=4 * 4096 + 1)
    data["mixture"] = mixture_of([(data["uint8"], 5), (data["uint16"], 3), (data["uint32"], 1)])
    lengths = np.maximum(1, rng.lognormal(6, 1.2, FILE_TOKENS // 800)).astype(np.int64)
    ends = np.cumsum(lengths)
    ends = np.append(ends[ends < FILE_TOKENS], FILE_TOKENS)
    np.append(0, ends).astype("<i8").tofile(index_of(folder / "uint16.bin"))
    data["documents"] = replace(data["uint16"], packing="documents")
    print("Tokens (millions) read in a processor second, and times what the training consumes:\n")
    print("| window | trained | " + " | ".join(data) + " |")
    print("|---|---|" + "---|" * len(data))
    worst = float("inf")
    for context in contexts:
        consumed = training_speed(data["uint8"], context, steps, folder)
        cells = []
        for chosen in data.values():
            speed = loader_speed(make_run(chosen, context, 1), seconds)
            worst = min(worst, speed / consumed)
            cells.append(f"{speed / 1e6:.0f}: {speed / consumed:.0f} x")
        print(f"| {context} | {consumed / 1e6:.3f} | " + " | ".join(cells) + " |", flush=True)
    met = worst >= LOADER_WANTED
    print(f"\nleast: {worst:.0f} times (wanted: {LOADER_WANTED:.0f}) {told(met)}\n")
    return met


def texts_of_python(megabytes: float) -> list[str]:
    """Python's own sources, as many as give so many megabytes."""
    found, size = [], 0
    while size < megabytes * 1e6:
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("**/*.py")):
            if "site-packages" in path.parts:
                continue
            try:
                found.append(path.read_text("utf-8"))
            except (OSError, UnicodeDecodeError):
                continue
            size += len(found[-1].encode())
            if size >= megabytes * 1e6:
                break
    return found


def train_bpe(texts: list[str], path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    made.save(str(path))


def plain_loop(source: Path, out: Path, tokenizer: Path | None) -> float:
    """Processor seconds of what a user would write."""
    encode: Callable[[str], bytes]
    if tokenizer is None:

        def encode(text: str) -> bytes:
            return text.encode() + b"\xff"
    else:
        from tokenizers import Tokenizer

        library = Tokenizer.from_file(str(tokenizer))

        def encode(text: str) -> bytes:
            return np.array([*library.encode(text).ids, 0], dtype="<u2").tobytes()

    began = time.process_time()
    with open(source, encoding="utf-8") as lines, open(out, "wb") as file:
        for line in lines:
            file.write(encode(json.loads(line)["text"]))
    return time.process_time() - began


def processor_s() -> float:
    """Of this process and of those that it has started and that are gone."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def prepare(folder: Path, quick: bool) -> bool:
    # A few processor seconds of each.
    sizes = {"bytes": 60.0, "bpe": 8.0} if quick else {"bytes": 300.0, "bpe": 30.0}
    met = True
    print("Megabytes of text a processor second:\n")
    print("| tokenizer | text | plain loop | 1 worker | 2 workers | wall clock, 1 and 2 |")
    print("|---|---|---|---|---|---|")
    for kind, megabytes in sizes.items():
        texts = texts_of_python(megabytes)
        size = sum(len(text.encode()) for text in texts) / 1e6
        source = folder / f"{kind}.jsonl"
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        tokenizer = folder / "bpe.json" if kind == "bpe" else None
        if tokenizer is not None:
            train_bpe(texts[:1000], tokenizer)
        del texts
        loop = size / plain_loop(source, folder / "plain.bin", tokenizer)
        cells, walls = [], []
        for workers in (1, 2):
            began, spent = time.monotonic(), processor_s()
            made = llem.prepare_data(
                source, out=folder / "made.bin", tokenizer=tokenizer or "bytes", workers=workers,
                replace=True,
            )  # fmt: skip
            speed = made.text_bytes / 1e6 / (processor_s() - spent)
            walls.append(f"{time.monotonic() - began:.1f} s")
            cell = f"{speed:.3g} = {speed / loop:.2f}"
            if (wanted := PREPARE_WANTED.get((kind, workers))) is not None:
                met &= speed >= wanted * loop
                cell += f" (wanted {wanted})"
            cells.append(cell)
        print(f"| {kind} | {size:.0f} MB | {loop:.3g} | {' | '.join(cells)} | "
              f"{', '.join(walls)} |", flush=True)  # fmt: skip
    print(f"\n{told(met)}")
    return met


def told(met: bool) -> str:
    return "met" if met else "NOT MET"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=("loader", "prepare"))
    options = parser.parse_args()
    parts = [part for part in (loader, prepare) if options.only in (None, part.__name__)]
    with tempfile.TemporaryDirectory(prefix="llem-data-speed-") as name:
        found = [part(Path(name), options.quick) for part in parts]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
