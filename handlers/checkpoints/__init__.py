"""The parts of `Checkpointer`: the state of a run, its bytes, and the folder of its files."""
