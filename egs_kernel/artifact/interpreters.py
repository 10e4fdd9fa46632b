"""Programs whose arguments decide which code runs: interpreters and the dynamic loader.

An authorization for such a program says nothing until its arguments are bound. Names are what we go
by for interpreters, so a renamed interpreter passes as a native program: whoever signs for a program
must know what it is. The dynamic loader is recognised by its ELF headers as well. Programs that only
start *other* programs (nice, timeout, xargs) need no entry: that exec passes the gate again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Final

from egs_kernel.errors import Refused
from egs_kernel.model import ProgramKind, Reason

ReadAt = Callable[[int, int], bytes]
"""`read(length, offset)` of the program's file; `functools.partial(os.pread, fd)` is one."""

_INTERPRETERS: Final = re.compile(
    r"""(?:
      (?:ba|rba|da|a|k|mk|lk|ok|pdk|z|rz|c|tc|fi|r|ya|pw|xon|elvi|nu)?sh | nu | osh | busybox | toybox
    | [\w-]*awk | bwk | sed | ex | vi | view | \w*vim | vim\.\w+ | emacs | m4 | g?make
    | \w*python | pypy | pythonw | perl | j?ruby | j?irb | php | php-cgi | phpdbg | hhvm
    | node | nodejs | deno | bun | qjs | d8 | js
    | lua | luajit | texlua | tclsh | wish | expect | guile | racket | gosh | csi | scheme | sbcl | clisp
    | java | jshell | groovy | kotlin | scala | clojure | dotnet | mono | csharp | ecl | ccl
    | R | Rscript | julia | octave | octave-cli | gnuplot | sqlite | psql | gdb | lldb | bpftrace | stap
    | erl | beam | beam\.smp | escript | elixir | iex | runghc | runhaskell | ocaml | ocamlrun | swipl
    | env | gforth | qemu-\w+(?:-static)? | box | wine | wasmtime | wasmer
    )(?:-?\d+(?:\.\d+)*)?(?:-?(?:dbg|debug|static|mt))?""",
    re.VERBOSE,
)
_LOADER: Final = re.compile(
    r"ld(?:-linux|-musl|64|-uClibc|-android)?[\w.-]*\.so(?:\.\d+)*|ld-2\.\d+\.so|linker(?:64)?"
)

SCRIPT_HEAD: Final = 256
"""Bytes of a script that the kernel looks for its interpreter in (BINPRM_BUF_SIZE)."""

_ELF = b"\x7fELF"
_ET_DYN = 3
_PT_DYNAMIC = 2
_PT_INTERP = 3
_DT_NULL = 0
_DT_FLAGS_1 = 0x6FFFFFFB
_DF_1_PIE = 0x08000000
_MAX_HEADERS = 128
_MAX_DYNAMIC = 16 * 1024
_HEADER_SIZE = 64


def program_kind(name: str, read_at: ReadAt) -> ProgramKind:
    """What kind of program a file is.

    Args:
        name: its path, symbolic links resolved.
        read_at: reads from its content.
    """
    head = read_at(_HEADER_SIZE, 0)
    if head.startswith(b"#!"):
        return ProgramKind.SCRIPT
    if is_interpreter_name(name):
        return ProgramKind.INTERPRETER
    if not head.startswith(_ELF):
        return ProgramKind.INTERPRETER  # binfmt_misc hands it to an interpreter, or nothing runs it
    return ProgramKind.INTERPRETER if _is_loader(head, read_at) else ProgramKind.NATIVE


def script_interpreter(head: bytes) -> tuple[str, ...]:
    """What the kernel puts before a script's name: the interpreter of its first line, and the line's argument, if any.

    Args:
        head: the first `SCRIPT_HEAD` bytes of the script.

    Raises:
        Refused: PROGRAM_UNBOUND; the line names no interpreter by an absolute path.
    """
    line, newline, _ = head[:SCRIPT_HEAD].partition(b"\n")
    words = re.split(rb"[ \t]+", line.removeprefix(b"#!").strip(b" \t"), maxsplit=1)
    whole = newline or len(head) < SCRIPT_HEAD  # else the kernel cuts it off
    try:
        found = tuple(word.decode() for word in words)
    except UnicodeDecodeError:
        found = ("",)
    if not head.startswith(b"#!") or not whole or not found[0].startswith("/") or "\0" in "".join(found):
        raise Refused(
            Reason.PROGRAM_UNBOUND,
            "the script's first line names no interpreter by an absolute path",
            f"Begin it with #!/path/of/the/interpreter, in at most {SCRIPT_HEAD} bytes.",
        )
    return found


def is_interpreter_name(name: str) -> bool:
    """Whether a program of that name is taken for an interpreter or a dynamic loader, whatever is in it."""
    base = PurePosixPath(name).name
    return bool(_INTERPRETERS.fullmatch(base) or _LOADER.fullmatch(base))


def _is_loader(head: bytes, read_at: ReadAt) -> bool:
    """A shared object that asks for no loader, and is no static PIE, is itself one. Unreadable: it is one."""
    try:
        return _loader_headers(head, read_at)
    except (struct.error, OverflowError, OSError):  # headers that point outside any file, or no longer read
        return True


def _loader_headers(head: bytes, read_at: ReadAt) -> bool:
    wide, order = head[4] == 2, "<" if head[5] == 1 else ">"  # noqa: PLR2004 - EI_CLASS: ELFCLASS64
    (kind,) = struct.unpack_from(order + "H", head, 16)
    if kind != _ET_DYN:
        return False
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
    entry_size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    entry = order + ("IIQQQQQQ" if wide else "IIIIIIII")
    if count > _MAX_HEADERS or entry_size != struct.calcsize(entry):
        return True
    dynamic: tuple[int, int] | None = None
    for index in range(count):
        fields = struct.unpack(entry, read_at(entry_size, table + index * entry_size))
        if fields[0] == _PT_INTERP:
            return False
        if fields[0] == _PT_DYNAMIC:
            dynamic = (fields[2], fields[5]) if wide else (fields[1], fields[4])
    return dynamic is None or not _is_pie(*dynamic, read_at, order + ("QQ" if wide else "II"))


def _is_pie(offset: int, size: int, read_at: ReadAt, entry: str) -> bool:
    content = read_at(min(size, _MAX_DYNAMIC), offset)
    usable = len(content) - len(content) % struct.calcsize(entry)
    for tag, value in struct.iter_unpack(entry, content[:usable]):
        if tag == _DT_NULL:
            break
        if tag == _DT_FLAGS_1:
            return bool(value & _DF_1_PIE)
    return False
