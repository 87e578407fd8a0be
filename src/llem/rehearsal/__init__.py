"""Plays a whole campaign without a GPU and writes the records that real ranks would have written.

Public: `World`, `Failures` (world), `Planted`, `planted`, `planted_for` (planted), `play`,
`Attempt`, `about_j` (course), `Measured` (measure), `write_attempt`, `evaluations_of` (recording),
`Event`, `tell`, `followed` (story), `Film`, `Frame` (frame), `Pace`, `close_ups` (pace).
"""

from llem.rehearsal.course import Attempt, about_j, play
from llem.rehearsal.frame import Film, Frame
from llem.rehearsal.measure import Measured
from llem.rehearsal.pace import Pace, close_ups
from llem.rehearsal.planted import Planted, planted, planted_for
from llem.rehearsal.recording import evaluations_of, write_attempt
from llem.rehearsal.story import Event, followed, tell
from llem.rehearsal.world import Failures, World

__all__ = [
    "Attempt",
    "Event",
    "Failures",
    "Film",
    "Frame",
    "Measured",
    "Pace",
    "Planted",
    "World",
    "about_j",
    "close_ups",
    "evaluations_of",
    "followed",
    "planted",
    "planted_for",
    "play",
    "tell",
    "write_attempt",
]
