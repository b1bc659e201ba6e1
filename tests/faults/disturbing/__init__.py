"""Faults put into real processes on a tiny model, and what is left of a run afterwards: `make faults`, a part of it in `make test`."""
