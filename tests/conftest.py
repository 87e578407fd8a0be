"""What holds for all tests."""

import signal

# A shell has what it starts in the background ignore Ctrl-C, and so has that its children: tests of
# Ctrl-C would wait in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)
