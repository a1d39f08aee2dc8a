"""Exact reads from a file descriptor; nothing is mapped, a truncated file must not kill anyone."""

from __future__ import annotations

import os

_FIRST_READ = 4096  # most headers fit, so that opening a file costs one read
_READ_SIZE = 1 << 24  # one pread call; Linux cuts reads off at 2 GiB anyway


def read_at(fd: int, offset: int, size: int) -> bytearray:
    """Exactly `size` bytes; a short read raises EOFError instead of passing unnoticed."""
    data = bytearray(size)
    done = 0
    with memoryview(data) as view:
        while done < size:
            count = os.preadv(fd, [view[done : done + _READ_SIZE]], offset + done)
            if not count:
                raise EOFError
            done += count
    return data


def read_header(fd: int, size: int) -> bytes:
    """The length and the JSON in front of a safetensors file of `size` bytes.

    Raises:
        EOFError: the file ends before its header does.
    """
    head = read_at(fd, 0, min(_FIRST_READ, size))
    stop = 8 + int.from_bytes(head[:8], "little")
    if stop > size:
        raise EOFError
    if stop > len(head):
        head = read_at(fd, 0, stop)
    return bytes(head[:stop])
