"""The life of a run: what it consists of, how it is resumed, how it ends, what it leaves."""
