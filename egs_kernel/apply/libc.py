"""System calls that Python has no function for.

By the half of `ctypes` that is written in C: the other half takes 3 ms to import, and every launch with constraints would
pay that.
"""

import _ctypes
import posix

byref = _ctypes.byref
_NOW = 2  # RTLD_NOW


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001 - generic to typeshed alone; has no other name
    """long."""

    _type_ = "l"


class Short(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001 - as above
    """unsigned short."""

    _type_ = "H"


class Word(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001 - as above
    """unsigned int."""

    _type_ = "I"


class Text(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001 - as above
    """char *."""

    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = Long


_syscall = _Function(_ctypes.dlsym(_ctypes.dlopen(None, _NOW), "syscall"))  # type: ignore[arg-type]  # None: what is loaded already
_PRCTL = 157 if posix.uname().machine == "x86_64" else 167


def system_call(number: int, *arguments: object) -> int:
    """Make a system call that has no name in the library.

    Raises:
        OSError: the kernel refused.
    """
    words = [Long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _syscall(Long(number), *words)
    if result < 0:
        raise OSError(_ctypes.get_errno(), posix.strerror(_ctypes.get_errno()))
    return result


def prctl(option: int, *arguments: object) -> int:
    """Have the kernel change something of this process, or say it.

    Raises:
        OSError: the kernel refused.
    """
    return system_call(_PRCTL, option, *[*arguments, 0, 0, 0, 0][:4])
