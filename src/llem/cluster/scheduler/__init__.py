"""The scheduler: SLURM's commands, what it says of elements, causes and retries."""
