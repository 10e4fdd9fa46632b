"""The system calls that a constraint may name, and the named base profiles. Facts: imports nothing of ours.

The names are those of the 64-bit architectures that the product runs on (x86-64, arm64, riscv64). A call that
is missing here is one that nobody has reviewed: under every profile it answers ENOSYS, as on an older kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


SYSCALLS: Final = _names(
    """
    _sysctl accept accept4 access acct add_key adjtimex afs_syscall alarm arch_prctl bind bpf brk cachestat
    capget capset chdir chmod chown chroot clock_adjtime clock_getres clock_gettime clock_nanosleep
    clock_settime clone clone3 close close_range connect copy_file_range creat create_module delete_module
    dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
    epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate
    fanotify_init fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr
    file_getattr file_setattr finit_module flistxattr flock fork fremovexattr fsconfig fsetxattr fsmount
    fsopen fspick fstat fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake
    futimesat get_kernel_syms get_mempolicy get_robust_list get_thread_area getcpu getcwd getdents
    getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getpmsg getppid
    getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid
    gettimeofday getuid getxattr getxattrat init_module inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit io_uring_enter
    io_uring_register io_uring_setup ioctl ioperm iopl ioprio_get ioprio_set kcmp kexec_file_load kexec_load
    keyctl kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link
    linkat listen listmount listxattr listxattrat llistxattr lookup_dcookie lremovexattr lseek lsetxattr
    lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat madvise map_shadow_stack mbind membarrier
    memfd_create memfd_secret migrate_pages mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap
    modify_ldt mount mount_setattr move_mount move_pages mprotect mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall
    munmap name_to_handle_at nanosleep newfstatat nfsservctl open open_by_handle_at open_tree open_tree_attr
    openat openat2 pause perf_event_open personality pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2
    pivot_root pkey_alloc pkey_free pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64
    process_madvise process_mrelease process_vm_readv process_vm_writev pselect6 ptrace putpmsg pwrite64
    pwritev pwritev2 query_module quotactl quotactl_fd read readahead readlink readlinkat readv reboot
    recvfrom recvmmsg recvmsg remap_file_pages removexattr removexattrat rename renameat renameat2
    request_key restart_syscall riscv_flush_icache riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam
    sched_getscheduler sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp security select semctl semget semop semtimedop sendfile sendmmsg
    sendmsg sendto set_mempolicy set_mempolicy_home_node set_robust_list set_thread_area set_tid_address
    setdomainname setfsgid setfsuid setgid setgroups sethostname setitimer setns setpgid setpriority
    setregid setresgid setresuid setreuid setrlimit setsid setsockopt settimeofday setuid setxattr
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socket socketpair splice
    stat statfs statmount statx swapoff swapon symlink symlinkat sync sync_file_range syncfs sysfs sysinfo
    syslog tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_settime
    timerfd_create timerfd_gettime timerfd_settime times tkill truncate tuxcall umask umount2 uname unlink
    unlinkat unshare uselib userfaultfd ustat utime utimensat utimes vfork vhangup vmsplice vserver wait4
    waitid write writev
    """
)

LAUNCH: Final = _names(
    """
    brk close execve execveat exit exit_group futex mmap mprotect munmap poll read recvfrom recvmsg
    restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sendmsg sendto write
    """
)
"""What the launcher itself still calls between installing the filter and the end of its execve."""


@dataclass(frozen=True)
class Condition:
    """A call that is allowed only when one of its arguments looks right.

    Attributes:
        argument: index of the argument. Only its low 32 bits count, as in the kernel.
        mask: the bits of it that are compared.
        value: what they must be.
    """

    argument: int
    mask: int
    value: int


@dataclass(frozen=True)
class Profile:
    """A named base: everything that SYSCALLS lists, less what it denies.

    Attributes:
        summary: one sentence for the documentation.
        denied: calls that are refused.
        conditions: calls that are refused unless the condition holds.
        absent: calls that answer ENOSYS whatever the action is: programs then use an older call,
            whose arguments a filter can see.
    """

    summary: str
    denied: frozenset[str]
    conditions: dict[str, Condition]
    absent: frozenset[str]


# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET: linux/sched.h
_CLONE_NEW: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_AF_UNIX: Final = 1

_NO_NEW_NAMESPACE: Final = {"clone": Condition(argument=0, mask=_CLONE_NEW, value=0)}
_ONLY_UNIX_SOCKETS: Final = {
    name: Condition(argument=0, mask=0xFFFFFFFF, value=_AF_UNIX) for name in ("socket", "socketpair")
}

_ADMINISTRATION: Final = _names(
    """
    acct bpf chroot clock_settime create_module delete_module fanotify_init finit_module fsconfig fsmount
    fsopen fspick get_kernel_syms init_module ioperm iopl kexec_file_load kexec_load mount mount_setattr
    move_mount nfsservctl open_by_handle_at open_tree open_tree_attr perf_event_open pivot_root query_module
    quotactl quotactl_fd reboot setdomainname sethostname setns settimeofday swapoff swapon syslog umount2
    unshare vhangup
    """
)
_OTHER_PROCESSES: Final = _names("kcmp pidfd_getfd process_vm_readv process_vm_writev ptrace")
_KERNEL_ATTACK_SURFACE: Final = _names(
    """
    _sysctl add_key get_mempolicy io_uring_enter io_uring_register io_uring_setup keyctl lookup_dcookie
    mbind migrate_pages move_pages personality request_key set_mempolicy set_mempolicy_home_node sysfs
    uselib userfaultfd ustat
    """
)
_DENIED: Final = _ADMINISTRATION | _OTHER_PROCESSES | _KERNEL_ATTACK_SURFACE

PROFILES: Final = {
    "default": Profile(
        summary="What container runtimes refuse: administration of the host, new namespaces, other "
        "processes' memory, and parts of the kernel that ordinary programs do not need.",
        denied=_DENIED,
        conditions=_NO_NEW_NAMESPACE,
        absent=frozenset({"clone3"}),
    ),
    "no-network": Profile(
        summary="As default, and no new socket of any family but AF_UNIX.",
        denied=_DENIED,
        conditions={**_NO_NEW_NAMESPACE, **_ONLY_UNIX_SOCKETS},
        absent=frozenset({"clone3"}),
    ),
}
