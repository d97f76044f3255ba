"""How a replica's process handles large pieces of memory.

Every upload comes, is checked and added up in buffers of its size. By default the C library gives such memory back to
the kernel each time, and the kernel clears it page by page for the next upload: about a hundred page faults for each.
"""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
KEPT_BYTES = 256 * 1024 * 1024
LARGE_BYTES = 32 * 1024 * 1024


def keep_memory() -> bool:
    """Have this process keep up to `KEPT_BYTES` of freed memory for the next use. Returns False where glibc is not."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(_MMAP_THRESHOLD, LARGE_BYTES))
