"""Rows as tables: the observation, and rows chosen, grouped and exported."""
