"""Timing that can be compared: what competes takes turns, round after round, in one process on one machine."""
