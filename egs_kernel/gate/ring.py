"""The consumer side of the gate's ring buffer (kernel/bpf/ringbuf.c), in two steps: take, then release.

libbpf frees an event's room as soon as it was handed over. Then an event that was taken and not yet recorded is
lost when the daemon is killed. Here the room stays taken, in the kernel, until the record has the event: a
daemon that starts again finds it. It also maps the buffer once, where libbpf maps it twice, which is 4 MB less.

Every event: a header of two u32 (length with two flag bits, page offset), its bytes, padding to 8.
"""

from __future__ import annotations

import mmap
import struct
import threading
from typing import Final

_LENGTH: Final = struct.Struct("=I")
_HEADER: Final = 8
_POSITION_BYTES: Final = 8
_BUSY: Final = 1 << 31
_DISCARDED: Final = 1 << 30


class Ring:
    """A mapped ring buffer. Nothing is lost while nobody consumes: it fills up, and the gate refuses."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Map the ring buffer of `descriptor`, whose data has `size` bytes (its max_entries).

        Raises:
            OSError: it is no ring buffer, or this process may not map it.
        """
        page = mmap.PAGESIZE
        self._size = size
        self._consumer = mmap.mmap(descriptor, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        try:
            self._producer = mmap.mmap(descriptor, page + size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        except BaseException:
            self._consumer.close()
            raise
        self._fence = threading.Lock()
        # The kernel reads and writes the positions at any moment, so each is one load or one store of 8 bytes.
        # struct.pack_into is not: it clears what it writes to first, and the kernel finds the buffer full.
        self._freed = memoryview(self._consumer).cast("Q")
        self._written = memoryview(self._producer)[:_POSITION_BYTES].cast("Q")
        self.position: int = self._freed[0]
        """Up to here everything was taken."""

    def take(self, most: int | None = None) -> list[bytes]:
        """The bytes of every event that waits, or of the first of them. They stay in the buffer until `release`."""
        taken: list[bytes] = []
        end = self._written[0]
        while self.position < end and (most is None or len(taken) < most):
            self._order()  # nothing of an event is read before the position that says it is there
            header: int = _LENGTH.unpack_from(self._producer, self._offset(self.position))[0]
            if header & _BUSY:
                break  # being written on another CPU: it is taken next time
            self._order()  # nor before the header that says it is whole
            length = header & ~(_BUSY | _DISCARDED)
            if not header & _DISCARDED:
                taken.append(self._bytes(self.position + _HEADER, length))
            self.position += -(-(_HEADER + length) // 8) * 8
        return taken

    def release(self, position: int) -> None:
        """Free the room of what was taken up to `position`."""
        self._freed[0] = position

    def close(self) -> None:
        """Unmap; what was not released stays for the next one."""
        self._written.release()
        self._freed.release()
        self._producer.close()
        self._consumer.close()

    def _offset(self, position: int) -> int:
        return mmap.PAGESIZE + position % self._size

    def _bytes(self, position: int, length: int) -> bytes:
        start = self._offset(position)
        first = self._producer[start : min(start + length, mmap.PAGESIZE + self._size)]
        rest = length - len(first)
        return first + self._producer[mmap.PAGESIZE : mmap.PAGESIZE + rest] if rest else first

    def _order(self) -> None:
        """A load barrier: taking a lock is one on every processor."""
        with self._fence:
            pass
