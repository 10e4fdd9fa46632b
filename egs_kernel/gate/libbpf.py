"""The few calls of libbpf that user space needs, through ctypes: no bcc, no LLVM in the daemon.

Every function raises `OSError` with the kernel's errno; callers turn it into a `GateError` that says what
was attempted.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

BPF_ANY: Final = 0
BPF_NOEXIST: Final = 1

_BATCH: Final = 1024

_c_callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


K = TypeVar("K")
V = TypeVar("V")


def _address(value: Any) -> Any:
    return None if value is None else ctypes.byref(value)


def _size(kind: Any) -> int:
    return ctypes.sizeof(kind)


def _raw(value: Any) -> bytes:
    return ctypes.string_at(ctypes.addressof(value), ctypes.sizeof(value))


class _TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.0."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class ProgInfo(ctypes.Structure):
    """The head of struct bpf_prog_info (include/uapi/linux/bpf.h), up to what we read."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("ifindex", ctypes.c_uint32),
        ("gpl_compatible", ctypes.c_uint32),
        ("netns_dev", ctypes.c_uint64),
        ("netns_ino", ctypes.c_uint64),
        ("nr_jited_ksyms", ctypes.c_uint32),
        ("nr_jited_func_lens", ctypes.c_uint32),
        ("jited_ksyms", ctypes.c_uint64),
        ("jited_func_lens", ctypes.c_uint64),
        ("btf_id", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("func_info", ctypes.c_uint64),
        ("nr_func_info", ctypes.c_uint32),
        ("nr_line_info", ctypes.c_uint32),
        ("line_info", ctypes.c_uint64),
        ("jited_line_info", ctypes.c_uint64),
        ("nr_jited_line_info", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("jited_line_info_rec_size", ctypes.c_uint32),
        ("nr_prog_tags", ctypes.c_uint32),
        ("prog_tags", ctypes.c_uint64),
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
        ("recursion_misses", ctypes.c_uint64),
        ("verified_insns", ctypes.c_uint32),
    )


class MapInfo(ctypes.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class LinkInfo(ctypes.Structure):
    """The head of struct bpf_link_info, and room for the rest."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("rest", ctypes.c_uint8 * 128),
    )


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    library.libbpf_set_print(None)  # errors arrive as errno; nothing is printed behind our back
    void = ctypes.c_void_p
    for name, result, arguments in (
        ("bpf_obj_get", ctypes.c_int, (ctypes.c_char_p,)),
        ("bpf_obj_pin", ctypes.c_int, (ctypes.c_int, ctypes.c_char_p)),
        ("bpf_map_lookup_elem", ctypes.c_int, (ctypes.c_int, void, void)),
        ("bpf_map_update_elem", ctypes.c_int, (ctypes.c_int, void, void, ctypes.c_uint64)),
        ("bpf_map_delete_elem", ctypes.c_int, (ctypes.c_int, void)),
        ("bpf_map_get_next_key", ctypes.c_int, (ctypes.c_int, void, void)),
        ("bpf_map_lookup_batch", ctypes.c_int, (ctypes.c_int, void, void, void, void, void, void)),
        ("bpf_obj_get_info_by_fd", ctypes.c_int, (ctypes.c_int, void, void)),
        ("bpf_prog_get_next_id", ctypes.c_int, (ctypes.c_uint32, void)),
        ("bpf_prog_get_fd_by_id", ctypes.c_int, (ctypes.c_uint32,)),
        ("bpf_prog_test_run_opts", ctypes.c_int, (ctypes.c_int, void)),
        ("bpf_raw_tracepoint_open", ctypes.c_int, (ctypes.c_char_p, ctypes.c_int)),
        ("libbpf_num_possible_cpus", ctypes.c_int, ()),
        ("btf__load_vmlinux_btf", void, ()),
        ("btf__free", None, (void,)),
        ("btf__find_by_name_kind", ctypes.c_int32, (void, ctypes.c_char_p, ctypes.c_uint32)),
        ("btf__type_by_id", void, (void, ctypes.c_uint32)),
        ("btf__name_by_offset", ctypes.c_char_p, (void, ctypes.c_uint32)),
        ("libbpf_probe_bpf_map_type", ctypes.c_int, (ctypes.c_int, void)),
        ("libbpf_probe_bpf_prog_type", ctypes.c_int, (ctypes.c_int, void)),
        ("libbpf_find_vmlinux_btf_id", ctypes.c_int, (ctypes.c_char_p, ctypes.c_int)),
        (
            "bpf_prog_load",
            ctypes.c_int,
            (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, void),
        ),
    ):
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library


class _Lazy:
    """Loads the library at the first call, so that `egs --help` works where libbpf is missing."""

    def __init__(self) -> None:
        self._loaded: ctypes.CDLL | None = None

    def __getattr__(self, name: str) -> Any:
        if self._loaded is None:
            self._loaded = _library()
        return getattr(self._loaded, name)


libbpf = _Lazy()


def _checked(result: int, what: str) -> int:
    if result < 0:
        error = ctypes.get_errno() or -result
        raise OSError(error, os.strerror(error), what)
    return result


def open_pin(path: Path) -> int:
    """A descriptor of a pinned map, program or link."""
    return _checked(libbpf.bpf_obj_get(os.fsencode(path)), str(path))


def pin(descriptor: int, path: Path) -> None:
    """Pin a map, program or link below a mounted bpffs."""
    _checked(libbpf.bpf_obj_pin(descriptor, os.fsencode(path)), str(path))


def attach_raw_tracepoint(name: str, program: int) -> int:
    """A descriptor of the new link."""
    return _checked(libbpf.bpf_raw_tracepoint_open(name.encode(), program), name)


class _LoadOpts(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf 1.0."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


_PROG_TYPE_RAW_TRACEPOINT: Final = 17
_PROG_TYPE_LSM: Final = 29
_ATTACH_LSM_MAC: Final = 27
_SLEEPABLE: Final = 1 << 4  # BPF_F_SLEEPABLE
_LOG_BYTES: Final = 1 << 20
_LOG_TAIL: Final = 3
"""Lines of the kernel's verdict on a program that it does not accept: the last ones say why."""


def load_raw_tracepoint(name: str, code: bytes) -> int:
    """A descriptor of a program for raw tracepoints."""
    arguments = (_PROG_TYPE_RAW_TRACEPOINT, name.encode()[:15], b"GPL", code, len(code) // 8)
    return _checked(libbpf.bpf_prog_load(*arguments, None), name)


def load_lsm(name: str, hook: str, code: bytes, *, sleepable: bool = False) -> int:
    """A descriptor of a program for an LSM hook.

    Raises:
        OSError: ENOENT: this kernel has no such hook, or no BPF LSM; else what the kernel has against the program,
            with the end of its reasons.
    """
    target = libbpf.libbpf_find_vmlinux_btf_id(hook.encode(), _ATTACH_LSM_MAC)
    if target <= 0:
        raise OSError(errno.ENOENT, "this kernel has no such LSM hook for BPF", hook)
    opts = _LoadOpts(
        sz=ctypes.sizeof(_LoadOpts),
        expected_attach_type=_ATTACH_LSM_MAC,
        attach_btf_id=target,
        prog_flags=_SLEEPABLE if sleepable else 0,
    )
    arguments = (_PROG_TYPE_LSM, name.encode()[:15], b"GPL", code, len(code) // 8)
    program = libbpf.bpf_prog_load(*arguments, ctypes.byref(opts))
    if program >= 0:
        return int(program)
    error = ctypes.get_errno() or -program
    log = ctypes.create_string_buffer(_LOG_BYTES)
    opts.log_level, opts.log_size, opts.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
    libbpf.bpf_prog_load(*arguments, ctypes.byref(opts))
    reasons = log.value.decode(errors="replace").strip().splitlines()[-_LOG_TAIL:]
    raise OSError(error, f"{os.strerror(error)}: {' / '.join(reasons)}", hook)


def attach_lsm(program: int) -> int:
    """A descriptor of the new link."""
    return _checked(libbpf.bpf_raw_tracepoint_open(None, program), "LSM link")


def program_info(descriptor: int) -> ProgInfo:
    """What the kernel says of a loaded program."""
    info = ProgInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(
        libbpf.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)), "program info"
    )
    return info


def map_info(descriptor: int) -> MapInfo:
    """What the kernel says of a map."""
    info = MapInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(libbpf.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)), "map info")
    return info


def object_id(descriptor: int) -> int:
    """The kernel's number of a map, program or link, among those of its kind."""
    # struct bpf_map_info, bpf_prog_info and bpf_link_info begin alike: type, id
    info = (ctypes.c_uint32 * 4)()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(
        libbpf.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)), "object info"
    )
    return int(info[1])


def link_info(descriptor: int) -> LinkInfo:
    """What the kernel says of a link."""
    info = LinkInfo()
    length = ctypes.c_uint32(ctypes.sizeof(info))
    _checked(libbpf.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)), "link info")
    return info


def program_numbers() -> list[int]:
    """The kernel's numbers of all programs that are loaded now."""
    numbers: list[int] = []
    following = ctypes.c_uint32(0)
    while libbpf.bpf_prog_get_next_id(following, ctypes.byref(following)) == 0:
        numbers.append(following.value)
    if ctypes.get_errno() != errno.ENOENT:
        _checked(-1, "next program")
    return numbers


_PROGRAM_MAPS: Final = 256


def maps_of_program(number: int) -> tuple[list[int], str]:
    """The numbers of the maps that a program has, and its name.

    Raises:
        OSError: ENOENT: there is no such program (any more).
    """
    descriptor = _checked(libbpf.bpf_prog_get_fd_by_id(number), f"program {number}")
    try:
        maps = (ctypes.c_uint32 * _PROGRAM_MAPS)()
        info = ProgInfo(nr_map_ids=_PROGRAM_MAPS, map_ids=ctypes.addressof(maps))
        length = ctypes.c_uint32(ctypes.sizeof(info))
        _checked(
            libbpf.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(length)),
            "program info",
        )
        return list(maps[: min(info.nr_map_ids, _PROGRAM_MAPS)]), info.name.decode(errors="replace")
    finally:
        os.close(descriptor)


def read_raw(descriptor: int, key: Any, value: Any) -> None:
    """Read the value of a key, whatever its type."""
    _checked(libbpf.bpf_map_lookup_elem(descriptor, _address(key), _address(value)), "map lookup")


def run_program(descriptor: int, arguments: tuple[int, ...]) -> int:
    """Run a raw tracepoint program once, in this task, with these tracepoint arguments; its return value."""
    context = (ctypes.c_uint64 * len(arguments))(*arguments)
    opts = _TestRunOpts(sz=ctypes.sizeof(_TestRunOpts))
    opts.ctx_in = ctypes.addressof(context)
    opts.ctx_size_in = ctypes.sizeof(context)
    _checked(libbpf.bpf_prog_test_run_opts(descriptor, ctypes.byref(opts)), "BPF_PROG_TEST_RUN")
    return int(opts.retval)


class Map(Generic[K, V]):
    """A hash or array map with typed keys and values."""

    def __init__(self, descriptor: int, key: type[K], value: type[V]) -> None:
        """Take over `descriptor`.

        Raises:
            OSError: EPROTO when the map's sizes are not those of the types: a pin of another version.
        """
        info = map_info(descriptor)
        if (info.key_size, info.value_size) != (_size(key), _size(value)):
            raise OSError(errno.EPROTO, "key or value size differs", info.name.decode())
        self.descriptor = descriptor
        self._key = key
        self._value = value

    def get(self, key: K) -> V | None:
        """The value, or None."""
        value = self._value()
        if libbpf.bpf_map_lookup_elem(self.descriptor, _address(key), _address(value)) == 0:
            return value
        if ctypes.get_errno() == errno.ENOENT:
            return None
        _checked(-1, "map lookup")
        raise AssertionError

    def put(self, key: K, value: V, flags: int = BPF_ANY) -> None:
        """Insert or replace."""
        _checked(
            libbpf.bpf_map_update_elem(self.descriptor, _address(key), _address(value), flags), "map update"
        )

    def delete(self, key: K) -> bool:
        """Remove; False when there was nothing."""
        if libbpf.bpf_map_delete_elem(self.descriptor, _address(key)) == 0:
            return True
        if ctypes.get_errno() == errno.ENOENT:
            return False
        _checked(-1, "map delete")
        raise AssertionError

    def keys(self) -> list[K]:
        """Every key, as far as a map that others change can be walked: use it to reconcile, not to decide."""
        found: list[K] = []
        seen: set[bytes] = set()
        key: K | None = None
        while True:
            following = self._key()
            if libbpf.bpf_map_get_next_key(self.descriptor, _address(key), _address(following)) != 0:
                if ctypes.get_errno() != errno.ENOENT:
                    _checked(-1, "map walk")  # refused, as by a sealed gate, is not empty
                return found
            raw = _raw(following)
            if raw in seen:  # the walk restarted because its key went away
                return found
            seen.add(raw)
            found.append(following)
            key = following

    def items(self) -> list[tuple[K, V]]:
        """Every pair, with the limits of `keys`."""
        pairs = ((key, self.get(key)) for key in self.keys())
        return [(key, value) for key, value in pairs if value is not None]

    def walk(self) -> list[tuple[K, V]]:
        """Every pair of a hash map that is there all the while, however many others come and go meanwhile."""
        pairs: list[tuple[K, V]] = []
        place, room = None, _BATCH
        while True:
            keys, values = (self._key * room)(), (self._value * room)()  # type: ignore[operator]  # ctypes' own
            count, following = ctypes.c_uint32(room), ctypes.c_uint32()
            result = libbpf.bpf_map_lookup_batch(
                self.descriptor, _address(place), _address(following), keys, values, _address(count), None
            )
            error = ctypes.get_errno() if result < 0 else 0
            if error == errno.ENOSPC:  # one bucket has more
                room *= 2
                continue
            if error not in (0, errno.ENOENT):
                _checked(result, "map walk")
            found = range(count.value)
            pairs += [(_copy(self._key, keys[i]), _copy(self._value, values[i])) for i in found]
            if error:
                return pairs
            place = following


def _copy(kind: Any, item: Any) -> Any:
    """An element of an array, without the array; simple C types come out of it as numbers."""
    return kind(item) if isinstance(item, int) else kind.from_buffer_copy(item)


class CounterMap:
    """A per-CPU array of u64 counters."""

    def __init__(self, descriptor: int) -> None:
        """Take over `descriptor`."""
        self.descriptor = descriptor
        self._size = map_info(descriptor).max_entries
        self._cpus = _checked(libbpf.libbpf_num_possible_cpus(), "number of CPUs")

    def reset(self) -> None:
        """Set every counter to zero."""
        zeros = (ctypes.c_uint64 * self._cpus)()
        for index in range(self._size):
            key = ctypes.c_uint32(index)
            _checked(
                libbpf.bpf_map_update_elem(self.descriptor, _address(key), _address(zeros), BPF_ANY),
                "counter",
            )

    def read(self) -> list[int]:
        """Each counter, summed over the CPUs."""
        values = (ctypes.c_uint64 * self._cpus)()
        totals = []
        for index in range(self._size):
            key = ctypes.c_uint32(index)
            _checked(libbpf.bpf_map_lookup_elem(self.descriptor, _address(key), _address(values)), "counter")
            totals.append(sum(values))
        return totals
