"""What would be written of a finished run, and how long it would take: the weights in shards.

llem itself keeps a run's checkpoint and writes no weights for others; a rehearsal shows what that
would be, in the sizes and at the speed of its checkpoints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llem._numerals import format_si
from llem.campaign import Run
from llem.rehearsal.course import WRITE_BYTES_S, WRITE_S

WEIGHT_BYTES = 4  # fp32, as they are trained
SHARD_BYTES, MOST_SHARDS = 5e9, 8
COMPANIONS = ("config.json", "tokenizer.json", "generation_config.json",
              "model.safetensors.index.json")  # fmt: skip
# Of writing the same bytes: what gathering them from ranks and encoding them takes.
GATHER, ENCODE = 0.4, 0.6


@dataclass(frozen=True)
class Part:
    """One bar of the export: what is done, of how many bytes, in how many seconds."""

    words: str
    done: str
    size_bytes: float
    seconds: float


def parts_of(run: Run) -> tuple[Part, ...]:
    """The export of a run, in order; every part takes a moment."""
    size = float(WEIGHT_BYTES * run.params)
    shards = min(MOST_SHARDS, max(1, math.ceil(size / SHARD_BYTES)))
    whole_s = WRITE_S + size / WRITE_BYTES_S
    ranks = run.layout.ranks
    parts = [Part("encoding as safetensors", f"{format_si(size, 'B')} encoded", size,
                  ENCODE * whole_s)]  # fmt: skip
    if ranks > 1:
        told = f"weights of {ranks} ranks gathered"
        parts.insert(0, Part(f"gathering {ranks} ranks' weights", told, size, GATHER * whole_s))
    for number in range(1, shards + 1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        told = f"would save {name} ({format_si(size / shards, 'B')})"
        parts.append(Part(f"writing shard {number} of {shards}", told, size / shards,
                          WRITE_S + size / shards / WRITE_BYTES_S))  # fmt: skip
    parts.append(Part("writing companion files", f"would save {', '.join(COMPANIONS)}", 0.0,
                      WRITE_S * len(COMPANIONS)))  # fmt: skip
    return tuple(parts)


def export_s(run: Run) -> float:
    return math.fsum(part.seconds for part in parts_of(run))


def total_of(run: Run) -> str:
    size = float(WEIGHT_BYTES * run.params)
    shards = min(MOST_SHARDS, max(1, math.ceil(size / SHARD_BYTES)))
    return f"{shards} shard{'s' if shards > 1 else ''}, {format_si(size, 'B')} in all"
