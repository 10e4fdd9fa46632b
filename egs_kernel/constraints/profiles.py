"""The named base profiles of `syscalls`. Facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from egs_kernel.constraints.conditions import Condition
from egs_kernel.constraints.syscalls import LAUNCH, SYSCALLS, names

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Profile:
    """A named base: everything that SYSCALLS lists, less what it denies.

    Attributes:
        summary: one sentence for the documentation.
        denied: calls that are refused.
        conditions: calls that are refused unless every condition holds.
        absent: calls that answer ENOSYS whatever the action is: programs then use an older call,
            whose arguments a filter can see.
    """

    summary: str
    denied: frozenset[str]
    conditions: Mapping[str, tuple[Condition, ...]]
    absent: frozenset[str]

    @property
    def allowed(self) -> frozenset[str]:
        """Calls that pass whatever their arguments are."""
        return SYSCALLS - self.denied - self.absent - set(self.conditions)


# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: linux/sched.h
_CLONE_NEW: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_CLONE_THREAD: Final = 0x00010000
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16  # linux/socket.h
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C  # asm-generic/ioctls.h
_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONCLEX, _FIOCLEX = 0x5401, 0x5413, 0x541B, 0x5450, 0x5451
_TCGETS2: Final = 0x802C542A
_SET_NAME, _GET_NAME, _CAPBSET_READ, _SET_VMA = 15, 16, 23, 0x53564D41  # linux/prctl.h

_NO_NEW_NAMESPACE: Final = {"clone": (Condition(0, (0,), _CLONE_NEW),)}
_ONLY_UNIX_SOCKETS: Final = {name: (Condition(0, (_UNIX,)),) for name in ("socket", "socketpair")}
_ONLY_CLIENT_SOCKETS: Final = {
    "socket": (Condition(0, (_UNIX, _INET, _INET6, _NETLINK)),),
    "socketpair": (Condition(0, (_UNIX,)),),
}
_NO_TERMINAL_INPUT: Final = {"ioctl": (Condition(1, (_TIOCSTI, _TIOCLINUX), equal=False),)}
_CLONE3: Final = frozenset({"clone3"})

_ADMINISTRATION: Final = names(
    """
    acct bpf chroot clock_settime create_module delete_module fanotify_init finit_module fsconfig fsmount
    fsopen fspick get_kernel_syms init_module ioperm iopl kexec_file_load kexec_load mount mount_setattr
    move_mount nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open pivot_root query_module
    quotactl quotactl_fd reboot setdomainname sethostname setns settimeofday swapoff swapon syslog umount2
    unshare vhangup
    """
)
_OTHER_PROCESSES: Final = names("kcmp pidfd_getfd process_vm_readv process_vm_writev ptrace")
_KERNEL_ATTACK_SURFACE: Final = names(
    """
    _sysctl add_key get_mempolicy io_uring_enter io_uring_register io_uring_setup keyctl lookup_dcookie
    mbind migrate_pages move_pages personality request_key set_mempolicy set_mempolicy_home_node sysfs
    uselib userfaultfd ustat
    """
)
_DENIED: Final = _ADMINISTRATION | _OTHER_PROCESSES | _KERNEL_ATTACK_SURFACE

_SERVING: Final = names("accept accept4 listen")
_IDENTITY: Final = names(
    "capset setfsgid setfsuid setgid setgroups setregid setresgid setresuid setreuid setuid"
)
_OWNERSHIP: Final = names("chown fchown fchownat lchown mknod mknodat")
_PRIORITY: Final = names(
    "ioprio_set mlock mlock2 mlockall sched_setattr sched_setparam sched_setscheduler setpriority"
)
_FILELESS_CODE: Final = names("memfd_create memfd_secret")
_UNATTENDED: Final = _IDENTITY | _OWNERSHIP | _PRIORITY | names("clock_adjtime adjtimex modify_ldt")

_COMPUTING: Final = LAUNCH | names(
    """
    access alarm arch_prctl chdir clock_getres clock_gettime clock_nanosleep copy_file_range dup dup2 dup3
    epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 faccessat
    faccessat2 fadvise64 fallocate fchdir fcntl fdatasync flock fstat fstatfs fsync ftruncate futex_requeue
    futex_wait futex_waitv futex_wake get_robust_list getcpu getcwd getdents getdents64 getegid geteuid
    getgid getgroups getitimer getpgid getpgrp getpid getppid getpriority getrandom getresgid getresuid
    getrlimit getrusage getsid gettid gettimeofday getuid lseek lstat madvise membarrier mincore mkdir
    mkdirat mremap msync nanosleep newfstatat open openat pause pipe pipe2 ppoll pread64 preadv preadv2
    prlimit64 pselect6 pwrite64 pwritev pwritev2 readahead readlink readlinkat readv rename renameat
    renameat2 riscv_flush_icache riscv_hwprobe rmdir rseq rt_sigpending rt_sigsuspend rt_sigtimedwait
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getparam sched_getscheduler
    sched_setaffinity sched_yield select sendfile set_robust_list set_thread_area set_tid_address setitimer
    sigaltstack splice stat statfs statx sync_file_range sysinfo tee tgkill time timer_create timer_delete
    timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times
    truncate umask uname unlink unlinkat writev
    """
)
_STRICT_CONDITIONS: Final = {
    "clone": (Condition(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NEW),),
    "ioctl": (Condition(1, (_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONCLEX, _FIOCLEX, _TCGETS2)),),
    "prctl": (Condition(0, (_SET_NAME, _GET_NAME, _CAPBSET_READ, _SET_VMA)),),
}

PROFILES: Final = {
    "agent": Profile(
        summary="For an agent's tools: as network-client, and nothing that changes identity, ownership or priority, types "
        "into the terminal, or makes a file that no folder has.",
        denied=_DENIED | _SERVING | _UNATTENDED | _FILELESS_CODE,
        conditions={**_NO_NEW_NAMESPACE, **_ONLY_CLIENT_SOCKETS, **_NO_TERMINAL_INPUT},
        absent=_CLONE3,
    ),
    "batch": Profile(
        summary="For a job that nobody attends: as no-network, and nothing that changes identity, ownership or priority, "
        "or types into the terminal.",
        denied=_DENIED | _SERVING | _UNATTENDED,
        conditions={**_NO_NEW_NAMESPACE, **_ONLY_UNIX_SOCKETS, **_NO_TERMINAL_INPUT},
        absent=_CLONE3,
    ),
    "default": Profile(
        summary="What container runtimes refuse: administration of the host, new namespaces, other "
        "processes' memory, and parts of the kernel that ordinary programs do not need.",
        denied=_DENIED,
        conditions=_NO_NEW_NAMESPACE,
        absent=_CLONE3,
    ),
    "network-client": Profile(
        summary="As default, and no service for others: it listens nowhere, and its sockets are TCP, UDP, AF_UNIX and "
        "netlink.",
        denied=_DENIED | _SERVING,
        conditions={**_NO_NEW_NAMESPACE, **_ONLY_CLIENT_SOCKETS},
        absent=_CLONE3,
    ),
    "no-network": Profile(
        summary="As default, and no new socket of any family but AF_UNIX.",
        denied=_DENIED,
        conditions={**_NO_NEW_NAMESPACE, **_ONLY_UNIX_SOCKETS},
        absent=_CLONE3,
    ),
    "strict": Profile(
        summary="What a program needs that reads files, computes in threads and writes files, and nothing else: no "
        "children, no sockets, no signals to others by kill.",
        denied=SYSCALLS - _COMPUTING - set(_STRICT_CONDITIONS) - _CLONE3,
        conditions=_STRICT_CONDITIONS,
        absent=_CLONE3,
    ),
}

NARROWEST_FIRST: Final = ("strict", "batch", "no-network", "agent", "network-client", "default")
"""All of them, from what allows least; a network counts most."""
