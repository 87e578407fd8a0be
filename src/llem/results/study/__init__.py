"""Runs of a study over their cycles: deployments, compared and tabled."""
