"""One thread a process: on tensors this small two only wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; child processes inherit it
