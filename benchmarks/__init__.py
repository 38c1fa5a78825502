"""Measurements, side by side with peers in one run; each module is a command."""
