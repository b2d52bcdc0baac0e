"""Files mapped into memory without keeping them open.

Python's `mmap`, and with it `np.memmap`, holds a descriptor for as long as the map lives, so that a mixture of a
thousand sources meets the usual limit of 1,024 open files. The system's own call needs none once the map is made.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_READ, _SHARED, _FAILED = 1, 1, ctypes.c_void_p(-1).value
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The file as an array [bytes / itemsize] that cannot be written to. Raises OSError; the file must not be empty."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(descriptor).st_size
        address = _libc.mmap(None, size, _READ, _SHARED, descriptor, 0)
        if address == _FAILED:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    finally:
        os.close(descriptor)
    held = (ctypes.c_char * size).from_address(address)
    weakref.finalize(held, _libc.munmap, address, size)  # when the last array over it is gone
    buffer: Any = held  # any object that has a buffer will do
    array: NDArray[Any] = np.frombuffer(buffer, dtype)
    array.flags.writeable = False
    return array
