"""The plan of a study: deployments in order, and what each is expected to cost."""
