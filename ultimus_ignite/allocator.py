"""One setting of the C library's allocator that a training step on the CPU is slow without."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep up to 256 MiB of freed memory instead of giving it back at once.

    Each step allocates and frees the same few blocks of 6 MB (512 x 3 x 32 x 32 floats). By
    default glibc returns them to the kernel every time, and the next step takes up to 4,800 page
    faults to get them back: about a third of the time of a `classic` batch. Without effect where
    the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the largest that glibc accepts
        mallopt(M_TRIM_THRESHOLD, 256 * 2**20)
