"""Images on the device as uint8, and batch k as a pure function of (seed, k)."""
