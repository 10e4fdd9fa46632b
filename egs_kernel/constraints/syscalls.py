"""The system calls that a constraint may name. Facts: imports nothing of ours.

The names are those of the 64-bit architectures that the product runs on (x86-64, arm64, riscv64). A call that
is missing here is one that nobody has reviewed: under every profile it answers ENOSYS, as on an older kernel.
"""

from __future__ import annotations

from typing import Final


def names(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


SYSCALLS: Final = names(
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

LAUNCH: Final = names(
    """
    brk close execve execveat exit exit_group futex mmap mprotect munmap poll read recvfrom recvmsg
    restart_syscall rt_sigaction rt_sigprocmask rt_sigreturn sendmsg sendto write
    """
)
"""What the launcher itself still calls between installing the filter and the end of its execve."""

_I386_ONLY: Final = names(
    """
    _llseek=lseek _newselect=select chown32=chown clock_adjtime64=clock_adjtime
    clock_getres_time64=clock_getres clock_gettime64=clock_gettime clock_nanosleep_time64=clock_nanosleep
    clock_settime64=clock_settime fadvise64_64=fadvise64 fchown32=fchown fcntl64=fcntl fstat64=fstat
    fstatat64=newfstatat fstatfs64=fstatfs ftruncate64=ftruncate futex_time64=futex getegid32=getegid
    geteuid32=geteuid getgid32=getgid getgroups32=getgroups getresgid32=getresgid getresuid32=getresuid
    getuid32=getuid io_pgetevents_time64=io_pgetevents lchown32=lchown lstat64=lstat mmap2=mmap
    mq_timedreceive_time64=mq_timedreceive mq_timedsend_time64=mq_timedsend nice=setpriority oldfstat=fstat
    oldlstat=lstat oldolduname=uname oldstat=stat olduname=uname ppoll_time64=ppoll
    pselect6_time64=pselect6 readdir=getdents recvmmsg_time64=recvmmsg
    rt_sigtimedwait_time64=rt_sigtimedwait sched_rr_get_interval_time64=sched_rr_get_interval
    semtimedop_time64=semtimedop sendfile64=sendfile setfsgid32=setfsgid setfsuid32=setfsuid setgid32=setgid
    setgroups32=setgroups setregid32=setregid setresgid32=setresgid setresuid32=setresuid
    setreuid32=setreuid setuid32=setuid sgetmask=rt_sigprocmask sigaction=rt_sigaction signal=rt_sigaction
    sigpending=rt_sigpending sigprocmask=rt_sigprocmask sigreturn=rt_sigreturn sigsuspend=rt_sigsuspend
    ssetmask=rt_sigprocmask stat64=stat statfs64=statfs stime=settimeofday timer_gettime64=timer_gettime
    timer_settime64=timer_settime timerfd_gettime64=timerfd_gettime timerfd_settime64=timerfd_settime
    truncate64=truncate ugetrlimit=getrlimit umount=umount2 utimensat_time64=utimensat waitpid=wait4
    """
)
I386_ONLY: Final = {name: as_what for name, _, as_what in (pair.partition("=") for pair in _I386_ONLY)}
"""The calls that only i386 has, and the call of SYSCALLS that each is judged as."""

MULTIPLEXERS: Final = {
    "socketcall": names(
        """
        accept accept4 bind connect getpeername getsockname getsockopt listen recvfrom recvmmsg recvmsg
        sendmmsg sendmsg sendto setsockopt shutdown socket socketpair
        """
    ),
    "ipc": names(
        "msgctl msgget msgrcv msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget",
    ),
}
"""Calls of i386 that stand for others. Their arguments lie in memory, where a filter cannot look."""

SAME_ON_I386: Final = names(
    """
    clone ioctl kill memfd_create open openat personality prctl ptrace setns tgkill tkill unshare
    """
)
"""Calls whose numbers and flags are the same ones on i386, so that a rule holds there as well. Not fcntl: it has the same
commands by other numbers, too. Of ioctl only requests below SAME_REQUESTS."""

SAME_REQUESTS: Final = 1 << 16
"""Larger ones have the size of a structure in them, which differs where pointers are short."""
