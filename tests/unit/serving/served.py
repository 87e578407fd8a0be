"""Serving a batch in this process, and what transformers' own `generate` gives for the same."""

import numpy as np
import torch
import transformers
from deployments import serving

from llem.records.schema import FORWARDS
from llem.serving.generating.backend import TransformersBackend
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import make_requests
from llem.training.pulse import NoCounter

LENGTHS = [3, 9, 1, 9, 6]


class Kept:
    """A record of the test: rows in memory."""

    def __init__(self):
        self.rows = {"forwards": [], "requests": [], "tokens": [], "spans": []}

    def append(self, table, row):
        self.rows[table].append(row)

    def append_rows(self, table, rows):
        self.rows[table].extend(rows)


def backend_of(world, *, lengths=LENGTHS, output_tokens=8, config=None, **options):
    run = serving(
        config=config,
        options={"batch_size": len(lengths), **options},
        prompts={"count": len(lengths), "input_tokens": 9, "output_tokens": output_tokens},
    )
    backend = TransformersBackend(run, Replica(world, ranks=1))
    backend.load()
    requests = [
        type(r)(number=r.number, prompt=r.prompt, tokens=r.tokens[: lengths[r.number]],
                output_tokens=r.output_tokens)
        for r in make_requests(run, backend.tokenizer)
    ]  # fmt: skip
    return backend, requests


def served(backend, requests, *, seed=0, **log):
    kept = Kept()
    torch.manual_seed(seed)
    told = Log(kept, counter=NoCounter(), **log)
    tokens = backend._generator.generate(requests, told)
    told.hand_over()
    return tokens, kept


def reference(model, requests, *, seed=0, **generation):
    """What `generate` gives each request, its own padding on the left."""
    longest = max(len(r.tokens) for r in requests)
    ids = torch.tensor([[0] * (longest - len(r.tokens)) + list(r.tokens) for r in requests])
    mask = torch.tensor([[0] * (longest - len(r.tokens)) + [1] * len(r.tokens) for r in requests])
    torch.manual_seed(seed)
    config = transformers.GenerationConfig(
        max_new_tokens=max(r.output_tokens for r in requests), pad_token_id=0, **generation
    )
    found = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    return [row[longest:].tolist() for row in found]


def ending_with(backend, ends):
    """The backend again, with a model whose texts end with one of these tokens."""
    backend.model.generation_config.eos_token_id = sorted(ends)
    backend.options = {**backend.options, "ignore_eos": False}
    backend._generator = backend._make_generator()
    return backend


def cut(text, ends):
    """A text up to the token that ends it."""
    return next((text[: i + 1] for i, token in enumerate(text) if token in ends), text)


def columns(kept):
    """The forward passes of a record by column."""
    return np.array(kept.rows["forwards"], FORWARDS)
