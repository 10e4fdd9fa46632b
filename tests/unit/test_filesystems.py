"""Which file systems tell that a file has changed: on real ones."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from egs_kernel.config import parse_config
from egs_kernel.errors import Refused, UsageError
from egs_kernel.filesystems import TRUSTED, filesystem_of, require_tracked
from egs_kernel.model import Reason


def opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def test_a_store_through_a_mapping_leaves_no_trace_on_tmpfs() -> None:
    """The reason for the rule. Should a kernel ever stamp the file, tmpfs may be trusted there."""
    path = Path("/dev/shm") / f"egs-test-{os.getpid()}"
    path.write_bytes(b"measured")
    try:
        before = path.stat().st_ctime_ns
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
            assert (
                mapped[:] == b"measured"
            )  # the page is mapped writable by this read: no fault is left to stamp
            mapped[:] = b"tampered"
        assert (path.read_bytes(), path.stat().st_ctime_ns) == (b"tampered", before)
        descriptor = opened(path)
        try:
            with pytest.raises(Refused, match="on tmpfs") as caught:
                require_tracked(descriptor, str(path))
            assert caught.value.reason is Reason.FILESYSTEM_UNTRUSTED
            require_tracked(descriptor, str(path), frozenset({"tmpfs"}))
        finally:
            os.close(descriptor)
    finally:
        path.unlink()


def test_an_unknown_file_system_is_not_trusted() -> None:
    descriptor = opened(Path("/proc/self/status"))
    try:
        assert filesystem_of(descriptor) == "0x9fa0"
        with pytest.raises(Refused, match="0x9fa0"):
            require_tracked(descriptor, "/proc/self/status")
    finally:
        os.close(descriptor)


def test_the_configuration_may_add_one_by_name() -> None:
    assert parse_config(b'trusted_filesystems = ["overlay"]').trusted_filesystems == {"overlay"}
    assert parse_config(b"").trusted_filesystems == frozenset()
    with pytest.raises(UsageError, match="'fuse' is none of"):
        parse_config(b'trusted_filesystems = ["fuse"]')


def test_memory_network_and_stacked_file_systems_are_not_trusted_by_default() -> None:
    assert not TRUSTED & {"tmpfs", "overlay", "9p", "nfs", "virtiofs"}
