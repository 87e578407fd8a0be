"""Fitting: the objective, its minimum, its certificate and its intervals."""
