"""For test_trackers.py: trackers that do what trackers must not, and one that keeps it all."""

import json
import os
import time
from pathlib import Path


class Raises:
    def on_step(self, row):
        raise RuntimeError(f"the server refused step {row['step']}")


class Hangs:
    def on_start(self, run, meta):
        time.sleep(3600)


class Crashes:
    def on_start(self, run, meta):
        os.abort()


class Keeps:
    def __init__(self, path):
        self.path = Path(path)

    def __getattr__(self, name):
        if not name.startswith("on_"):
            raise AttributeError(name)

        def keep(*values):
            with open(self.path, "a") as file:
                file.write(json.dumps([name, *values]) + "\n")

        return keep
