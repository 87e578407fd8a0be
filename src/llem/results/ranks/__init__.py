"""What the ranks of an attempt say: steps, requests, their clocks and their time."""
