"""A study as its file asks it: models, prompts, arrivals, sweeps, deployments."""
