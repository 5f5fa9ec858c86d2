"""A setting of the C library's allocator that makes a training step on the CPU faster."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation. Other C libraries are left alone.

    Each step allocates and frees the same few blocks of megabytes. By default glibc returns them
    to the kernel, and each step takes a page fault for every 4 KiB: a ReLU on 512 x 32 x 32 x 32
    floats, forward and backward, takes 220 ms, or 45 ms if the blocks come from the heap. The
    process keeps its peak size.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)
