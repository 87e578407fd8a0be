"""A run as one row: a training's or a served model's, with its energy and ratios."""
