"""What a study's prompts turn out to be: counted and named by their content.

Texts are not made tokens here: how many a text has is the model's tokenizer's to say, on the node.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from llem.campaign.data.saveddata import saved_dataset
from llem.campaign.study.deployment import Prompts
from llem.campaign.study.study import PromptChoice
from llem.errors import Fault, InputError

# Bytes of a token of English text, of a usual vocabulary: what the planner counts with.
BYTES_PER_TOKEN = 4.0


def prompts_of(choice: PromptChoice, *, base: Path, path: str = "prompts") -> Prompts:
    """The prompts that are asked; a relative path starts at `base`.

    Raises InputError where a file cannot be read, holds no prompts or fewer than are asked for.
    """
    if choice.synthetic is not None:
        asked = choice.synthetic
        return Prompts(
            kind="synthetic",
            count=asked.count,
            input_tokens=asked.input_tokens,
            output_tokens=asked.output_tokens,
            seed=choice.seed,
        )
    assert choice.output_tokens is not None
    found: dict[str, Any] = {"output_tokens": choice.output_tokens, "seed": choice.seed}
    if choice.dataset is not None:
        folder = (base / Path(choice.dataset).expanduser()).resolve()
        known, digest, expected = _dataset(folder, path=f"{path}.dataset")
        found |= {"kind": "dataset", "path": str(folder), "field": choice.field}
    elif choice.builtin is not None:
        shipped = Path(str(files("llem.campaign") / "prompts" / f"{choice.builtin}.jsonl"))
        known, digest, expected = _lines(shipped, choice, path=f"{path}.builtin")
        found |= {"kind": "builtin", "name": choice.builtin, "field": choice.field}
    else:
        assert choice.jsonl is not None
        file = (base / Path(choice.jsonl).expanduser()).resolve()
        known, digest, expected = _lines(file, choice, path=f"{path}.jsonl")
        found |= {"kind": "jsonl", "path": str(file), "field": choice.field}
    count = choice.count or known
    if count > known:
        raise InputError(
            "campaign", [Fault(f"{path}.count", f"{count} prompts, and there are {known}")]
        )
    return Prompts(count=count, digest=digest, expected_input_tokens=expected, **found)


def _lines(file: Path, choice: PromptChoice, *, path: str) -> tuple[int, str, float]:
    """How many prompts a JSON Lines file holds, its digest and the tokens expected of one."""
    try:
        text = file.read_bytes()
    except OSError as error:
        fault = Fault(path, f"{file}: cannot be read: {error.strerror or error}")
        raise InputError("campaign", [fault]) from None
    tokens: list[float] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)[choice.field]
        except (ValueError, KeyError, TypeError):
            told = f"{file}, line {number}: no JSON object with the key {choice.field!r}"
            raise InputError("campaign", [Fault(path, told)]) from None
        whole = isinstance(value, list)
        tokens.append(len(value) if whole else len(str(value).encode()) / BYTES_PER_TOKEN)
    if not tokens:
        raise InputError("campaign", [Fault(path, f"{file} holds no prompts")])
    asked = tokens[: choice.count]
    digest = hashlib.blake2b(text, digest_size=16).hexdigest()
    return len(tokens), digest, sum(asked) / len(asked)


def _dataset(folder: Path, *, path: str) -> tuple[int, str, float]:
    """The same of a data set that Hugging Face's `save_to_disk` wrote."""
    try:
        found = saved_dataset(folder)
        rows = found.rows()
    except InputError as error:
        faults = [Fault(path, f"{error.source} {f.message}", f.hint) for f in error.faults]
        raise InputError("campaign", faults) from None
    if not rows:
        raise InputError("campaign", [Fault(path, f"{folder} holds no prompts")])
    names = [file.name for file in found.files]
    size = sum(file.stat().st_size for file in found.files)
    digest = hashlib.blake2b(
        json.dumps([found.fingerprint, size, names]).encode(), digest_size=16
    ).hexdigest()
    return rows, digest, size / rows / BYTES_PER_TOKEN
