/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the drift programs (bpf/drift.bpf.c) and user space (egs_kernel/gate/drift_abi.py) share, besides egs_abi.h.
 *
 * An ABI of its own: the monitor reads these events, the daemon never does. Compiled by the host's compiler in
 * tests/unit/test_abi.py, which compares every size, offset and number with the mirror. Any change here is a
 * new EGS_DRIFT_ABI_VERSION: a monitor refuses programs of another version.
 */
#ifndef EGS_DRIFT_H
#define EGS_DRIFT_H

#define EGS_DRIFT_ABI_VERSION 1

#define EGS_DRIFT_PAGES 128      /* of each of the two ring buffers */
#define EGS_DRIFT_NAME 128
#define EGS_DRIFT_OBJECTS 256    /* maps and programs of the gate and of drift */
#define EGS_DRIFT_OBJECT_NAME 32
#define EGS_DRIFT_WRITERS 16     /* processes that may write to them */
#define EGS_DRIFT_CALLS 1024     /* numbers of system calls */
#define EGS_DRIFT_RATES 8192
#define EGS_DRIFT_RATE 32        /* events of one kind that one process causes in one second; the rest is counted */
#define EGS_DRIFT_RATE_ORDINARY 256 /* the same of what ordinary programs do all the time */
#define EGS_DRIFT_NO_SCOPE 0xffffffff /* whom it happened to is governed no more, or never was */

/* What an event says. Whether it is drift, the baseline says. */
enum egs_drift_kind {
	EGS_DRIFT_TRACED = 1,         /* `by` attached to it; `number`: the ptrace(2) request */
	EGS_DRIFT_MEMORY_OPENED = 2,  /* `by` opened its /proc/PID/mem for writing */
	EGS_DRIFT_MEMORY_WRITTEN = 3, /* `by` wrote `number` bytes into it: process_vm_writev(2) */
	EGS_DRIFT_NAMESPACE = 4,      /* `number`: CLONE_NEW* flags; 0: setns(2) with a descriptor of any kind */
	EGS_DRIFT_ROOT = 5,           /* chroot(2), pivot_root(2) */
	EGS_DRIFT_CODE_MAPPED = 6,    /* executable memory of `file`, at `address` */
	EGS_DRIFT_CODE_ANONYMOUS = 7, /* executable memory of no file, at `address`; 0: anywhere, and maybe all from now on */
	EGS_DRIFT_CODE_PROTECTED = 8, /* `number` bytes at `address` became executable, of a file or of none */
	EGS_DRIFT_CREDENTIALS = 9,    /* it changed its user, groups or capabilities: they are as the event says */
	EGS_DRIFT_CGROUP = 10,        /* it is in cgroup `number` now, of the path `name` */
	EGS_DRIFT_EXEC = 11,          /* it executed `file` as `name`; `number`: EGS_DRIFT_EXEC_* */
	EGS_DRIFT_CHILD = 12,         /* it was born, of `by` */
	EGS_DRIFT_GATE_WRITTEN = 13,  /* of the host: `by` called bpf(2), command `number`, on the gate's object `name` */
	EGS_DRIFT_MODULE = 14,        /* of the host: `by` loaded the module `name` */
	EGS_DRIFT_CHILD_APART = 15,   /* as CHILD, but with CLONE_NEW* flags (`number`), or in cgroup `address` */
	EGS_DRIFT_KINDS = 16,
};

enum egs_drift_exec {
	EGS_DRIFT_EXEC_NAMELESS = 1, /* the file has no name in any folder */
	EGS_DRIFT_EXEC_MEMFD = 2,
};

/* What is looked at when a system call has succeeded. */
enum egs_drift_action {
	EGS_CALL_OPEN = 1,       /* open(2), flags second */
	EGS_CALL_OPENAT = 2,     /* openat(2), flags third */
	EGS_CALL_OPENED = 3,     /* creat(2), openat2(2), open_by_handle_at(2): a descriptor, however it was opened */
	EGS_CALL_PTRACE = 4,
	EGS_CALL_VM_WRITE = 5,
	EGS_CALL_SETNS = 6,
	EGS_CALL_UNSHARE = 7,
	EGS_CALL_ROOT = 8,
	EGS_CALL_MMAP = 9,
	EGS_CALL_OLD_MMAP = 10,  /* of i386: its arguments are in memory */
	EGS_CALL_MPROTECT = 11,
	EGS_CALL_PERSONALITY = 12,
	EGS_CALL_SHMAT = 13,
	EGS_CALL_IPC = 14,       /* of i386: shmat(2) as one of many */
	EGS_CALL_CREDENTIALS = 15,
	EGS_CALL_PRCTL = 16,
	EGS_CALL_BPF = 17,
};

/* What the third argument must have for a call to be looked at; it is in one register, for both kinds of programs. */
enum egs_drift_demand {
	EGS_DEMAND_NOTHING = 0,
	EGS_DEMAND_CODE = 1,    /* PROT_EXEC */
	EGS_DEMAND_WRITING = 2, /* an access mode other than O_RDONLY */
};

enum egs_drift_failure {
	EGS_DRIFT_FAIL_ROOM = 0,       /* no room in a ring buffer */
	EGS_DRIFT_FAIL_STATE = 1,      /* kernel memory could not be read: something was not told, or not all of it */
	EGS_DRIFT_FAIL_USER = 2,       /* the caller's memory could not be read: the event says less, or is not there */
	EGS_DRIFT_FAIL_TARGET = 3,     /* who a call was about could not be found out: it ended meanwhile */
	EGS_DRIFT_FAIL_RATE = 4,       /* a rate could not be noted: the event was sent */
	EGS_DRIFT_FAILURES = 8,
};

enum egs_drift_object_kind {
	EGS_DRIFT_MAP = 1,
	EGS_DRIFT_PROGRAM = 2,
};

struct egs_drift_config {
	__u32 abi_version;
	__u32 pad;
};

/* Actions by the number of a system call: of 64-bit programs, x32 included, and of 32-bit ones. */
struct egs_drift_call {
	__u8 native;
	__u8 compat;
	__u8 demand;
	__u8 pad;
};

struct egs_drift_object_key {
	__u32 kind;
	__u32 id;
};

struct egs_drift_object {
	char name[EGS_DRIFT_OBJECT_NAME];
	__u32 always; /* told whoever changes it */
};

struct egs_drift_rate_key {
	__u32 pid;
	__u32 kind;
};

struct egs_drift_rate {
	__u64 second;
	__u32 count;
	__u32 pad;
};

struct egs_drift_event {
	__u32 kind;
	__u32 scope;
	__u64 time;      /* CLOCK_BOOTTIME, ns */
	__u64 execution; /* as the gate has it */
	__u64 started;   /* the process, boot-time clock, ns */
	__u64 address;
	__u64 number;
	__u64 permitted; /* capabilities */
	__u64 effective;
	struct egs_file_id file;
	__u32 pid;
	__u32 by; /* the process that did it; 0: itself */
	__u32 uid;
	__u32 euid;
	__u32 gid;
	__u32 egid;
	char comm[EGS_COMM]; /* of who did it */
	char name[EGS_DRIFT_NAME];
};

#endif
