#!/usr/bin/env python3
"""llem's training with all its recording beside bare loops, litgpt and transformers' Trainer.

    python tests/benchmarks/training_speed.py                 # all of it, some 10 minutes
    python tests/benchmarks/training_speed.py --quick         # the smallest size, one thread
    python tests/benchmarks/training_speed.py --python ENV/bin/python   # litgpt, transformers there

Each contestant is a process of its own that trains the same shape on batches of the same size, with
AdamW and clipping, in fp32. They take turns: one block of steps each, forwards and then backwards
(A B C C B A ...), and who has no turn sleeps in a read. So what else the machine does meets all of
them alike, and a ratio of neighbouring blocks still says something. Then all of it again with new
processes (a heat). What is compared is wall time and processor time of the same number of steps, as
the mean of the logarithms of those ratios, with its standard error over heats.

  llem       what a rank runs: the order of the windows, reading them, schedule, step, clip, the
             record of every step, the progress file, looking for a reason to leave
  bare       the same model object and optimiser; batches lie ready in memory; nothing is recorded
  litgpt     its GPT, initialisation and loss, in a loop as its pretraining has (fused AdamW)
  trainer    transformers' Trainer with its LlamaForCausalLM, nothing logged and nothing saved
  tracked    llem with a TensorBoard tracker, where tensorboard is installed

Wanted: llem at least 97 % of bare, and at least as fast as litgpt and as Trainer. Losses of llem
and of bare must be the same to the bit. Exit status 1 where something was not met.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peers

from llem.campaign import Decoder, Layout, Predicted, Recipe, Run
from llem.campaign.data.tokenfile import token_file, write_tokens

WANTED_BARE = 0.97
# A decoder and the sequences of a batch.
SHAPES = {
    "0.3M": (
        Decoder(layers=4, width=72, heads=4, mlp_width=192, vocabulary=256, context=128,
                tied_embeddings=False), 8,
    ),
    "3M": (
        Decoder(layers=6, width=192, heads=6, mlp_width=512, vocabulary=1024, context=256,
                tied_embeddings=False), 4,
    ),
    "15M": (
        Decoder(layers=8, width=320, heads=5, mlp_width=864, vocabulary=8192, context=512,
                tied_embeddings=False), 2,
    ),
}  # fmt: skip
CONTESTANTS = ("llem", "bare", "litgpt", "trainer", "tracked")
WARM_STEPS = 8
# Steps whose losses are compared to the bit; at least WARM_STEPS, since blocks differ in length.
COMPARED = WARM_STEPS
BATCHES = 64


def make_run(shape: str, folder: Path) -> Run:
    """An endless run: who drives it ends the process."""
    model, sequences = SHAPES[shape]
    path = folder / f"{shape}.bin"
    if not path.exists():
        draws = np.random.default_rng(0).integers(0, model.vocabulary, 2**21, dtype=np.uint16)
        write_tokens(path, draws, dtype="uint16")
    batch_tokens, steps = sequences * model.context, 10**6
    return Run(
        model=model, tokens=steps * batch_tokens, steps=steps, seed=0,
        recipe=Recipe(batch_tokens=batch_tokens, learning_rate=1e-3, warmup_steps=0,
                      schedule="constant"),
        data=token_file(path, dtype="uint16", evaluation_tokens=8193),
        layout=Layout(micro_batch=sequences),
        predicted=Predicted(duration_s=1.0, gpu_hours=1.0, energy_j=1.0, memory_bytes=1.0),
    )  # fmt: skip


class Turns:
    """A contestant's side of taking turns: `after_step` ends a block and sleeps until the next."""

    def __init__(self) -> None:
        # What libraries print must not come between.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = WARM_STEPS
        self._losses: list[float] = []
        self._began = (time.perf_counter(), time.process_time())

    def after_step(self, loss: Any = None) -> None:
        if len(self._losses) < COMPARED and loss is not None:
            self._losses.append(float(loss))
        self._left -= 1
        if self._left:
            return
        wall_s, cpu_s = self._began
        answer = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}
        print(json.dumps({**answer, "losses": self._losses}), file=self._answers, flush=True)
        asked = sys.stdin.readline()
        if not asked:
            os._exit(0)
        self._left = int(asked)
        self._began = (time.perf_counter(), time.process_time())


def train_llem(run: Run, folder: Path, *, tracked: bool = False) -> None:
    """The training as a rank of an element runs it."""
    from llem.cluster.disk.folder import CampaignFolder
    from llem.cluster.job.leaving import Leaving
    from llem.cluster.job.recorder import Recorder
    from llem.energy import step_counter
    from llem.training import start_world, train
    from llem.training.trackers import start_trackers

    place = CampaignFolder(folder)
    leaving = Leaving(place, environ={"SLURM_JOB_ID": "0"})
    leaving.looks = True
    attempt = folder / "attempt-0"
    leaving.later = attempt.with_name("attempt-1").exists
    recorder = Recorder(place, hosts=["here"], rank=0, ranks=1)
    turns = Turns()

    def after_step() -> str | None:
        turns.after_step()
        return leaving.why()

    if tracked:
        import tensorboard  # noqa: F401
    shown = start_trackers([{"tensorboard": {}}] if tracked else [], folder=place.tracking)
    with start_world() as world:
        train(
            run, attempt_dir=attempt, checkpoints_dir=folder / "checkpoints", world=world,
            meta={"attempt": 0}, callbacks=[recorder.progress(run, attempt), *shown],
            should_stop=after_step,
            counter=step_counter(world.device_uuid, local_rank=0),
        )  # fmt: skip


def train_bare(run: Run) -> None:
    """What anyone would write first, with llem's model and llem's parameter groups."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    from llem.training.model import build_model

    model = build_model(run.model, seed=run.seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-3, betas=(0.9, 0.95), eps=1e-8, fused=True,
    )  # fmt: skip
    turns = Turns()
    for inputs, targets in batches(run):
        logits = model(inputs)
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.after_step(loss.detach())


def train_litgpt(run: Run) -> None:
    """The loop of litgpt's `pretrain.fit`, without Fabric and without what it logs."""
    import torch
    from litgpt.utils import chunked_cross_entropy
    from torch import nn

    model = peers.litgpt_model(run.model)
    model.max_seq_length = run.model.context
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    turns = Turns()
    for inputs, targets in batches(run):
        logits = model(inputs)
        loss = chunked_cross_entropy(logits, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        turns.after_step(loss.detach())


def train_trainer(run: Run, folder: Path) -> None:
    from torch.utils.data import Dataset
    from transformers import Trainer, TrainerCallback, TrainingArguments

    turns = Turns()
    context = run.model.context
    tokens = np.memmap(run.data.path, dtype="<u2", mode="r")

    class Windows(Dataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return int(run.data.training_tokens // context)

        def __getitem__(self, i: int) -> dict[str, Any]:
            window = tokens[i * context : (i + 1) * context].astype(np.int64)
            return {"input_ids": window, "labels": window}

    class TakeTurns(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.after_step()

    arguments = TrainingArguments(
        output_dir=str(folder), use_cpu=True, max_steps=run.steps, seed=0,
        per_device_train_batch_size=run.layout.micro_batch, learning_rate=1e-3,
        lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0,
        optim="adamw_torch_fused", logging_strategy="no", save_strategy="no", report_to=[],
        disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    model = peers.transformers_model(run.model)
    Trainer(model=model, args=arguments, train_dataset=Windows(), callbacks=[TakeTurns()]).train()


def batches(run: Run) -> Iterator[tuple[Any, Any]]:
    """The run's first batches as tensors, over and over."""
    import torch

    from llem.training.tokens.data import Windows, share_of

    windows, share = Windows(run), share_of(run, rank=0, ranks=1)
    found = []
    for step in range(BATCHES):
        (part,) = windows.batch(step, share).micros
        found.append(tuple(torch.from_numpy(tokens).contiguous() for tokens in part))
    return itertools.cycle(found)


def contestant(name: str, shape: str, threads: int, folder: Path) -> None:
    import torch

    torch.set_num_threads(threads)
    run = make_run(shape, folder)
    own = folder / f"{name}-{shape}-{threads}"
    own.mkdir()
    match name:
        case "llem" | "tracked":
            train_llem(run, own, tracked=name == "tracked")
        case "bare":
            train_bare(run)
        case "litgpt":
            train_litgpt(run)
        case "trainer":
            train_trainer(run, own)


class AbsentError(Exception):
    """A contestant's package is not installed."""


class Contestant:
    """A contestant seen from outside."""

    def __init__(self, name: str, shape: str, threads: int, folder: Path, python: str) -> None:
        self.name = name
        self._log = folder / f"{name}-{shape}-{threads}.log"
        environment = {
            **os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        }  # fmt: skip
        with open(self._log, "w") as log:
            self._process = subprocess.Popen(
                [python, __file__, "--contestant", name, "--sizes", shape, "--threads",
                 str(threads), "--folder", str(folder)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=environment,
            )  # fmt: skip
        self.losses = self._answer()["losses"]

    def block(self, steps: int) -> tuple[float, float]:
        """Wall and processor seconds of so many steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["wall_s"], answer["cpu_s"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text()
            if "No module named" in said:
                raise AbsentError(said.splitlines()[-1])
            raise SystemExit(f"{self.name} ended:\n{said[-3000:]}")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


# Of each contestant, the (wall, processor) seconds per token of its blocks.
Taken = dict[str, list[tuple[float, float]]]


def heat(
    run: Run, shape: str, threads: int, names: Sequence[str], folder: Path,
    args: argparse.Namespace,
) -> tuple[Taken, bool]:  # fmt: skip
    """Blocks in turn, of processes that start anew; and whether llem's losses are the bare ones."""
    racers: list[Contestant] = []
    try:
        for name in names:
            try:
                racers.append(Contestant(name, shape, threads, folder, args.python))
            except AbsentError as error:
                print(f"{name} is left out: {error}")
        if not racers:
            return {}, True
        # By processor time: others make the wall longer.
        first_s = min(racer.block(4)[1] for racer in racers) / 4 / threads
        steps = max(1, round(args.block_s / first_s))
        tokens = steps * run.recipe.batch_tokens
        taken: Taken = {racer.name: [] for racer in racers}
        for number in range(args.rounds):
            for racer in racers if number % 2 == 0 else reversed(racers):
                wall_s, cpu_s = racer.block(steps)
                taken[racer.name].append((wall_s / tokens, cpu_s / tokens))
    finally:
        for racer in racers:
            racer.close()
    bare = [racer.losses for racer in racers if racer.name == "bare"]
    same = not bare or "llem" not in taken or recorded_losses(folder, shape, threads) == bare[0]
    return taken, same


def measure(shape: str, threads: int, folder: Path, args: argparse.Namespace) -> bool:
    """One table of a size and a number of threads; False where something was not met."""
    run = make_run(shape, folder)
    heats, met = [], True
    for number in range(args.heats):
        # Who was first is the next heat's last, and so on.
        shift = number % len(args.only)
        names = [*args.only[shift:], *args.only[:shift]]
        own = folder / f"heat-{number}"
        own.mkdir(exist_ok=True)
        taken, same = heat(run, shape, threads, names, own, args)
        if not taken:
            return False
        heats.append(taken)
        if not same:
            print(f"heat {number}: the first {COMPARED} losses of llem and of bare DIFFER")
            met = False
    print(
        f"\n{shape}: {run.params:,} parameters, batch {run.layout.micro_batch} x "
        f"{run.model.context}, {threads} thread(s), {args.heats} heats of {args.rounds} blocks"
    )
    print(f"{'':>9} {'tokens/s':>9} {'cpu us/token':>13}   llem against it: wall, processor")
    for name in [name for name in args.only if name in heats[0]]:
        wall_s, cpu_s = np.median(np.concatenate([taken[name] for taken in heats]), axis=0)
        line = f"{name:>9} {1 / wall_s:9,.0f} {1e6 * cpu_s:13.2f}   "
        if name == "llem" or "llem" not in heats[0]:
            print(line.rstrip())
            continue
        for which in (0, 1):
            ratio, error = against(heats, name, which)
            line += f"  {ratio:6.3f} +- {error:.3f}"
        # By processor time: the wall is also others'.
        wanted = {"bare": WANTED_BARE, "tracked": None}.get(name, 1.0)
        if wanted is not None:
            met &= ratio >= wanted
            line += f"   wanted {wanted:.2f}: {'met' if ratio >= wanted else 'NOT MET'}"
        print(line, flush=True)
    return met


def against(heats: Sequence[Taken], name: str, which: int) -> tuple[float, float]:
    """How many times as fast as `name` llem is, and the standard error.

    Two processes of the very same code differ by a percent or two, wherever their memory came to
    lie: so it is heats that are repeated, and blocks only where there is a single heat.
    """
    blocks = [
        np.log(np.array(taken[name])[:, which] / np.array(taken["llem"])[:, which])
        for taken in heats
    ]
    logs = blocks[0] if len(blocks) == 1 else np.array([each.mean() for each in blocks])
    ratio = math.exp(logs.mean())
    return ratio, ratio * float(logs.std(ddof=1)) / math.sqrt(len(logs))


def recorded_losses(folder: Path, shape: str, threads: int) -> list[float]:
    """llem's first losses, as its rank recorded them."""
    from llem.records import read_rank

    record = read_rank(folder / f"llem-{shape}-{threads}" / "attempt-0" / "rank-00000.h5")
    return [float(loss) for loss in record.steps["loss"][:COMPARED]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the smallest size on one thread")
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--heats", type=int, default=4, help="each with new processes")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of a heat")
    parser.add_argument("--block-s", type=float, default=0.5, help="seconds of a block if alone")
    parser.add_argument("--python", default=sys.executable, help="has llem, litgpt, transformers")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        contestant(args.contestant, args.sizes[0], args.threads[0], args.folder)
        return 0
    if args.quick:
        args.sizes, args.threads, args.heats = ["0.3M"], [1], 2
    load = os.getloadavg()
    print(f"load {load[0]:.1f} {load[1]:.1f} {load[2]:.1f} on {os.cpu_count()} processors")
    met = True
    with tempfile.TemporaryDirectory(prefix="llem-speed-") as name:
        folder = Path(name)
        for shape in args.sizes:
            make_run(shape, folder)
            for threads in args.threads:
                met &= measure(shape, threads, folder, args)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
