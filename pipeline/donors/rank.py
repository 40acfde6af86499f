"""One of the processes that train a stage together: `python -m pipeline.donors.rank`, its job as JSON on standard input."""

import contextlib
import os
import select
import sys
import threading

from pipeline.donors.processes import PARENT, USER_ERROR, Job
from pipeline.errors import UserError


def main() -> int:
    _end_with(int(os.environ[PARENT]))
    job = Job.from_json(sys.stdin.buffer.read())
    import torch.distributed

    from pipeline.donors.sharding import shard_on_cpus
    from pipeline.donors.stages import train_stage
    from pipeline.donors.trainers import TRAINERS
    from pipeline.weights.checkpoint import Checkpoint

    if not torch.cuda.is_available():
        shard_on_cpus()
    start = None if job.start is None else Checkpoint(*job.start)
    try:
        train_stage(job.folder, job.recipe, TRAINERS[job.folder.name], start, job.examples, job.processes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(USER_ERROR)  # without waiting for the others, who may wait for this one
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _end_with(parent: int) -> None:
    """End this process when its parent has gone, which it would outlive waiting for the others."""

    def watch() -> None:
        with contextlib.suppress(ProcessLookupError):
            select.select([os.pidfd_open(parent)], [], [])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
