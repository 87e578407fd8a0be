"""Answers: the best training at a target, what it costs, and how sure that is."""
