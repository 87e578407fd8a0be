"""One rank of a deployment in a process of its own: `rank.py JOB RANK`, JOB as `start` wrote it."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from deployments import serving

from llem.errors import LlemError
from llem.serving import serve_run
from llem.training import start_world


def main(job, rank):
    values = json.loads(Path(job).read_text())
    run = serving(**values["run"])
    with start_world(rank=rank, local_rank=rank, world_size=values["ranks"],
                     master_port=values["port"], timeout_s=60.0) as world:  # fmt: skip
        try:
            told = serve_run(
                run, attempt_dir=Path(job).parent / "attempt-1", world=world, meta={"attempt": 1}
            ).to_dict()
        except LlemError as error:
            told = {"error": str(error)}
        Path(f"{job}.{rank}").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
