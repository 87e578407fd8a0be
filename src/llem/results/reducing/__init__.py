"""Reducing a run's records, once, by several workers, and keeping what was found."""
