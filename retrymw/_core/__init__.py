"""The sans-I/O core: no clock, no randomness of its own, no locks, no I/O, no logging."""
