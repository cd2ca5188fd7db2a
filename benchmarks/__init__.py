"""Measurements of this project and of its alternatives; run from the top of the repository, never installed."""
