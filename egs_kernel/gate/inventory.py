"""What is loaded of the gate, fact by fact: taken at the load, and taken again to be compared with that.

A pin is the name of a map, a program or a link; what it is the name of is not looked at by who opens it. So the facts
name the kernel's own numbers of them, which no later object has again, the instructions by their tag, and where a link
is attached. Maps that nobody writes after the load are told by what is in them.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from egs_kernel.gate import libbpf
from egs_kernel.gate.drift import FOLDER
from egs_kernel.gate.drift_abi import OBJECT_NAME, Object, ObjectKey, ObjectKind
from egs_kernel.gate.parts import GUARDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from egs_kernel.gate.drift import DriftGate

CONSTANT: Final = frozenset({"code_variables", "drift_calls", "drift_configs"})
"""Maps whose content is that of the load."""

_COMES_AND_GOES: Final = frozenset(f"link_{name}" for name in GUARDS)
"""Links that the daemon attaches while a scope holds."""

_PROGRAM: Final = re.compile(r"program (\d+),")
_MAP, _PROG, _LINK = "map", "prog", "link"
_TOLD: Final = {_MAP: ObjectKind.MAP, _PROG: ObjectKind.PROGRAM}
"""Kinds that a command of bpf(2) changes. The gate's links can only be closed."""
WRITERS: Final = f"{FOLDER}/drift_writers"
"""The list of those who may change the gate without being told of."""
_LIST: Final = f"{FOLDER}/drift_objects"


def take_inventory(pins: Path) -> dict[str, str]:
    """A fact for each pin: its name in the gate's folder → what it is.

    Raises:
        OSError: the folder, or what a pin is the name of, cannot be looked at.
    """
    return dict(_facts(pins, ""))


def note_objects(pins: Path, drift: DriftGate) -> None:
    """Have changes of every map and program told; those of the list itself last, as this is one."""
    for name, kind, number in sorted(_objects(pins, ""), key=lambda found: found[0] == _LIST):
        if kind not in _TOLD:
            continue
        told = Object(name=name.encode()[: OBJECT_NAME - 1], always=name == WRITERS)
        drift.objects.put(ObjectKey(kind=_TOLD[kind], id=number), told)


def foreign_users(pins: Path, noted: Mapping[str, str]) -> dict[str, str]:
    """Programs that are not the gate's and have a map of it: number and name → the maps.

    Args:
        pins: the gate's folder.
        noted: its inventory at the load.

    Raises:
        OSError: the kernel does not say.
    """
    maps = {number: name for name, kind, number in _objects(pins, "") if kind == _MAP}
    programs = {int(match[1]) for fact in noted.values() if (match := _PROGRAM.match(fact))}
    found: dict[str, str] = {}
    for number in libbpf.program_numbers():
        if number in programs:
            continue
        try:
            used, name = libbpf.maps_of_program(number)
        except OSError as error:
            if error.errno == errno.ENOENT:
                continue  # unloaded meanwhile
            raise
        if touched := sorted(maps[number] for number in used if number in maps):
            found[f"program {number} {name}"] = ", ".join(touched)
    return found


def _entries(pins: Path, prefix: str) -> Iterator[tuple[str, Path]]:
    for entry in sorted(pins.iterdir()):
        if entry.name == FOLDER and not prefix:
            yield from _entries(entry, f"{FOLDER}/")
        elif entry.name not in _COMES_AND_GOES:
            yield prefix + entry.name, entry


def _objects(pins: Path, prefix: str) -> Iterator[tuple[str, str, int]]:
    for name, path in _entries(pins, prefix):
        descriptor = libbpf.open_pin(path)
        try:
            yield name, _kind(descriptor), libbpf.object_id(descriptor)
        finally:
            os.close(descriptor)


def _facts(pins: Path, prefix: str) -> Iterator[tuple[str, str]]:
    for name, path in _entries(pins, prefix):
        descriptor = libbpf.open_pin(path)
        try:
            yield name, _fact(name, descriptor)
        finally:
            os.close(descriptor)


def _kind(descriptor: int) -> str:
    """What kind of object it is, by the kernel's name of its file: anon_inode:bpf-map, bpf-prog, bpf_link or bpf-link."""
    return Path(f"/proc/self/fd/{descriptor}").readlink().name[-4:].lstrip("-")


def _fact(name: str, descriptor: int) -> str:
    kind = _kind(descriptor)
    if kind == _PROG:
        program = libbpf.program_info(descriptor)
        return f"program {program.id}, tag {bytes(program.tag).hex()}"
    if kind == _LINK:
        link = libbpf.link_info(descriptor)
        return f"link {link.id} of program {link.prog_id}"
    table = libbpf.map_info(descriptor)
    fact = (
        f"map {table.id} of type {table.type}: {table.max_entries} entries of "
        f"{table.key_size} and {table.value_size} bytes, flags {table.map_flags}"
    )
    content = name.rpartition("/")[2]
    return f"{fact}, content {_digest(descriptor, table)}" if content in CONSTANT else fact


def _digest(descriptor: int, table: libbpf.MapInfo) -> str:
    """SHA-256 of every value of an array."""
    value = (ctypes.c_uint8 * table.value_size)()
    whole = hashlib.sha256()
    for index in range(table.max_entries):
        libbpf.read_raw(descriptor, ctypes.c_uint32(index), value)
        whole.update(bytes(value))
    return whole.hexdigest()
