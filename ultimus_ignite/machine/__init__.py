"""The machine that a run is on: its device, cores and memory, and the software on it."""
