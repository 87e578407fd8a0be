"""How the processes of a node that measure together meet."""
