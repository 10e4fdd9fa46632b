"""Programs that take code from their arguments are recognised; others are not."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egs_kernel.artifact.interpreters import program_kind, script_interpreter
from egs_kernel.errors import Refused
from egs_kernel.model import ProgramKind, Reason

EXEC_HEADER = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + bytes(46)  # ELFCLASS64, ET_EXEC


def kind_of(path: Path, name: str | None = None) -> ProgramKind:
    with path.open("rb") as file:
        return program_kind(name or str(path), partial(os.pread, file.fileno()))


def kind_of_bytes(content: bytes, name: str = "/x") -> ProgramKind:
    return program_kind(name, lambda length, offset: content[offset : offset + length])


INTERPRETERS = """
    sh bash dash zsh ksh ksh93 fish busybox python python3 python3.11 pypy3 perl perl5.36.0 ruby3.1 node nodejs
    awk gawk mawk original-awk env java lua5.4 luajit php8.2 tclsh8.6 pwsh guile-3.0 vim.basic Rscript gdb beam.smp
    qemu-x86_64-static ld.so ld-linux-x86-64.so.2 ld-2.31.so ld-musl-x86_64.so.1 ld64.so.2 ld-linux.so.2
"""
OTHERS = "true ls git ssh push nginx postgres rush-hour report env2json ld shutdown"


@pytest.mark.parametrize("name", INTERPRETERS.split())
def test_interpreters_by_name(name: str) -> None:
    assert kind_of_bytes(EXEC_HEADER, f"/usr/bin/{name}") is ProgramKind.INTERPRETER


@pytest.mark.parametrize("name", OTHERS.split())
def test_other_names(name: str) -> None:
    assert kind_of_bytes(EXEC_HEADER, f"/usr/bin/{name}") is ProgramKind.NATIVE


def test_real_programs_of_this_host() -> None:
    assert kind_of(Path("/bin/true").resolve()) is ProgramKind.NATIVE
    assert kind_of(Path("/bin/sh").resolve()) is ProgramKind.INTERPRETER
    for loader in Path("/").glob("lib*/ld-linux*.so*"):
        assert kind_of(loader.resolve(), "/opt/innocent") is ProgramKind.INTERPRETER


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["-static"], ProgramKind.NATIVE),
        (["-static-pie"], ProgramKind.NATIVE),
        (["-pie"], ProgramKind.NATIVE),
        (["-no-pie"], ProgramKind.NATIVE),
        (["-shared", "-fPIC"], ProgramKind.INTERPRETER),
    ],
    ids=str,
)
def test_how_a_program_is_linked(options: list[str], kind: ProgramKind, tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    assert compiler is not None, "scripts/setup --dev installs gcc"
    program = tmp_path / "program"
    subprocess.run(
        [compiler, *options, "-x", "c", "-", "-o", program], input=b"int main(void) { return 0; }", check=True
    )
    assert kind_of(program) is kind


def test_a_shared_object_that_asks_for_a_loader_is_none(tmp_path: Path) -> None:
    """Such as libc.so.6, or a position-independent program of an older linker."""
    source = b'const char loader[] __attribute__((section(".interp"))) = "/lib64/ld-linux-x86-64.so.2";'
    program = tmp_path / "program"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", program], input=source, check=True)
    assert kind_of(program) is ProgramKind.NATIVE


def test_scripts_and_what_is_no_elf() -> None:
    assert kind_of_bytes(b"#!/bin/sh\n", "/usr/bin/python3") is ProgramKind.SCRIPT
    for content in (b"", b"\x7fEL", b"echo hi\n", b"MZ\x90"):
        assert kind_of_bytes(content) is ProgramKind.INTERPRETER


@given(st.binary(max_size=300))
def test_damaged_headers_never_raise(content: bytes) -> None:
    kind_of_bytes(b"\x7fELF\x02\x01\x01" + content)


def test_a_truncated_shared_object_counts_as_a_loader(tmp_path: Path) -> None:
    loader = next(Path("/").glob("lib*/ld-linux*.so*")).read_bytes()
    for length in (17, 40, 64, 100, 400):
        assert kind_of_bytes(loader[:length]) is ProgramKind.INTERPRETER


@pytest.mark.parametrize("offset", [2**40, 2**63 - 1, 2**64 - 1])
def test_headers_that_point_outside_the_file_count_as_a_loader(offset: int, tmp_path: Path) -> None:
    header = bytearray(EXEC_HEADER)
    header[16:18] = (3).to_bytes(2, "little")  # ET_DYN
    header[32:40] = offset.to_bytes(8, "little")
    header[54:58] = (56).to_bytes(2, "little") + (1).to_bytes(2, "little")
    program = tmp_path / "program"
    program.write_bytes(header)
    assert kind_of(program) is ProgramKind.INTERPRETER


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"#!/bin/sh\n", ("/bin/sh",)),
        (b"#! \t/bin/sh \t\necho", ("/bin/sh",)),
        (b"#!/bin/sh -e  -u \n", ("/bin/sh", "-e  -u")),
        (b"#!/bin/sh", ("/bin/sh",)),
        (b"#!/bin/sh\r\n", ("/bin/sh\r",)),
    ],
)
def test_what_a_script_is_executed_by(head: bytes, words: tuple[str, ...]) -> None:
    assert script_interpreter(head) == words


@pytest.mark.parametrize(
    "head",
    [b"", b"/bin/sh\n", b"#!\n", b"#! \n", b"#!sh\n", b"#!/\xff\n", b"#!/bin\0/sh\n", b"#!/" + b"x" * 253],
)
def test_a_script_that_names_no_interpreter(head: bytes) -> None:
    with pytest.raises(Refused) as caught:
        script_interpreter(head)
    assert caught.value.reason is Reason.PROGRAM_UNBOUND
    assert caught.value.next_step
