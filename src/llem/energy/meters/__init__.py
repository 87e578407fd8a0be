"""Meters: which devices a node has, and how each is read."""
