"""Judging: how far a fit may be trusted, and what must be told of it."""
