"""Plays a whole campaign without a GPU and writes the records that real ranks would have written.

Public: `World`, `Failures` (world), `Planted`, `planted` (planted), `play`, `Attempt` (course),
`Measured` (measure), `write_attempt`, `evaluations_of` (recording).
"""

from llem.rehearsal.course import Attempt, play
from llem.rehearsal.measure import Measured
from llem.rehearsal.planted import Planted, planted
from llem.rehearsal.recording import evaluations_of, write_attempt
from llem.rehearsal.world import Failures, World

__all__ = [
    "Attempt",
    "Failures",
    "Measured",
    "Planted",
    "World",
    "evaluations_of",
    "planted",
    "play",
    "write_attempt",
]
