"""One rank of a deployment in a process of its own: `rank.py JOB RANK`, JOB as `start` wrote it."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from deployments import serving

from llem.errors import LlemError
from llem.serving import serve_run
from llem.serving.generating.backend import TransformersBackend
from llem.serving.log import Log
from llem.serving.replica import Replica
from llem.serving.requests import make_requests
from llem.training import start_world
from llem.training.pulse import NoCounter


def tokens_of(run, world):
    """The tokens of the first batch, the logits after its first prompt, and how many weights this
    rank holds."""
    replica = Replica(world, ranks=run.deployment.tensor_parallel)
    backend = TransformersBackend(run, replica)
    backend.load()
    requests = make_requests(run, backend.tokenizer)[: backend.batching.batch_size]

    class Nothing:
        def append(self, table, row):
            pass

        append_rows = append

    def own(values):
        return values.to_local() if hasattr(values, "to_local") else values

    with torch.no_grad():
        logits = backend.model(input_ids=torch.tensor([requests[0].tokens])).logits[0, -1]
    return {
        "logits": logits.tolist(),
        "replica": replica.index,
        "tokens": backend._generator.generate(requests, Log(Nothing(), counter=NoCounter())),
        "held": sum(own(p).numel() for p in backend.model.parameters()),
    }


def main(job, rank):
    values = json.loads(Path(job).read_text())
    run = serving(**values["run"])
    with start_world(rank=rank, local_rank=rank, world_size=values["ranks"],
                     master_port=values["port"], timeout_s=60.0) as world:  # fmt: skip
        try:
            told = (
                tokens_of(run, world)
                if values.get("tokens")
                else serve_run(
                    run, attempt_dir=Path(job).parent / "attempt-1", world=world, meta={}
                ).to_dict()
            )
        except LlemError as error:
            told = {"error": str(error)}
        Path(f"{job}.{rank}").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
