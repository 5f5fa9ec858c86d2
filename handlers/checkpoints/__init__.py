"""What `Checkpointer` writes: the state of a run, its bytes, and the folder they lie in."""
