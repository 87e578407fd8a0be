"""Inside a job: the rank, whom it meets, what it leaves, when it goes."""
