"""A study of deployments from its file to its result."""
