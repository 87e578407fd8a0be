"""The picture of a measurement: power by device over time, as SVG, page or PNG."""

from llem.report.power.drawing import SUFFIXES, write_power
from llem.report.power.picture import Panel, PowerPicture, Stretch, time_label

__all__ = ["SUFFIXES", "Panel", "PowerPicture", "Stretch", "time_label", "write_power"]
