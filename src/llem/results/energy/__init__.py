"""Who used which device when, in joules, so that each is counted once."""
