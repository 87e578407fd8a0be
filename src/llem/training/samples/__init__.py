"""A user's own model, data set and loss as a task."""
