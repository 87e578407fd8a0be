"""Trackers: TensorBoard, Weights & Biases, MLflow, or a class of the user's own.

Each lives in a process of its own beside rank 0 (`child`), which is fed through a pipe that never
blocks (`feed`). Whatever a tracker does, hang, raise, crash or hold Python's lock while it talks to
a server, the training neither waits for it nor computes anything else.
"""

from llem.training.trackers.feed import Feed, TrackerError, close_all, start_trackers

__all__ = ["Feed", "TrackerError", "close_all", "start_trackers"]
