"""What /proc says of a process, whatever is in it."""

from __future__ import annotations

import os

import pytest

from egs_kernel.processes import cgroup_of, parse_cgroup


@pytest.mark.parametrize(
    ("content", "path"),
    [
        ("0::/system.slice/a.service\n", "/system.slice/a.service"),
        ("0::/\n", "/"),
        # cgroup v2 beside v1: systemd names units in one of its own, and in v2 as well where it may
        ("12:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n", "/system.slice/a.service"),
        ("1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n", "/system.slice/b.service"),
        ("0::/odd:name/a.service\n", "/odd:name/a.service"),
        ("5:cpu,cpuacct:/x\n", "/"),
        ("", "/"),
    ],
)
def test_the_cgroup_of_a_process(content: str, path: str) -> None:
    assert parse_cgroup(content) == path


def test_a_process_that_is_gone() -> None:
    assert cgroup_of(os.getpid()).startswith("/")
    with pytest.raises(ProcessLookupError):
        cgroup_of(2**22 + 1)
