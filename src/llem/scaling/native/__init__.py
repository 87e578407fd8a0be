"""The hot loops in C, where there is a compiler; nothing needs them."""
