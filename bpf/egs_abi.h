/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What the gate (bpf/gate.bpf.c) and user space (egs_kernel/gate/abi.py) share.
 *
 * Fixed-width fields, explicit padding, no pointers. Compiled by bcc for the kernel and by the host
 * compiler in tests/unit/test_abi.py, which compares every size, offset and number with the mirror.
 * Any change here is a new EGS_ABI_VERSION: a daemon refuses pins of another version.
 */
#ifndef EGS_ABI_H
#define EGS_ABI_H

#define EGS_ABI_VERSION 6

#define EGS_MAX_SCOPES 64
#define EGS_SCOPE_SELF_TEST_OBSERVE 64 /* reserved: the loader's self-test, reads only */
#define EGS_SCOPE_SELF_TEST_ENFORCE 65 /* reserved: the loader's self-test, must kill */
#define EGS_SCOPE_SLOTS 66
#define EGS_SCOPE_NAME 32

#define EGS_TASKS 65536      /* governed processes that can be tracked */
#define EGS_ENDED 4096       /* of those that ended, whose execution is still told */
#define EGS_TASKS_SOFT 32768 /* beyond this a governed process that forks dies: the rest is head room */
#define EGS_HELD_MAX 4096      /* processes that wait at once; the next one dies */
#define EGS_GRANTS 8192
#define EGS_GRANTS_PER_FILE 8
#define EGS_CHILDREN_OF 0x8000 /* with the scope, in the key of a grant that is for an artifact's children */
#define EGS_SUBJECTS 16384      /* files that artifacts name */
#define EGS_LIBRARY_FOLDERS 64  /* trusted library roots */
#define EGS_FOLDER_DEPTH 64     /* folders above a library that are looked at */
#define EGS_PENDING_EXECS 8192  /* execs under way at once */
#define EGS_CODE_EVENTS 16      /* refused code that is reported, of one execution; the rest is counted */
#define EGS_PROTECTED_FILES 16384 /* files and folders that a sealed gate keeps */
#define EGS_OWN_OBJECTS 256       /* maps, programs and links of the gate */
#define EGS_APPLICANTS 1024       /* programs that may turn out to be the daemon, while it is gone */
#define EGS_ATTEMPTS 16           /* refused attempts that are reported in one second; the rest is counted */
#define EGS_HARMLESS_NAME 32
#define EGS_ARGV_MAX 4096
#define EGS_ARGV_SMALL 256
#define EGS_FILENAME_MAX 256
#define EGS_COMM 16
#define EGS_CGROUP_PATH 256
#define EGS_CGROUP_DEPTH 64
#define EGS_ENTRY_NAME 64
#define EGS_RING_PAGES 1024
#define EGS_ENV_STRINGS 1024 /* more variables than this refuse */
#define EGS_ENV_STRING 4096  /* one is looked at in pieces of this */
#define EGS_VARIABLE_BUCKETS 32
#define EGS_VARIABLES_PER_BUCKET 8
#define EGS_VARIABLE_BUCKET(first, second, third) (((first) * 7 + (second) * 3 + (third)) & 31)

enum egs_verdict {
	EGS_ALLOW = 0,
	EGS_DENY = 1,
	EGS_KILL = 2,
	EGS_HOLD = 3,
};

/* In the order in which the gate asks: a higher number got further. */
enum egs_reason {
	EGS_AUTHORIZED = 0,
	EGS_DAEMON_STALE = 1,
	EGS_AUDIT_UNAVAILABLE = 2,
	EGS_STATE_UNREADABLE = 3,
	EGS_NO_GRANT = 4,
	EGS_SUBJECT_MISMATCH = 5,
	EGS_FILE_CHANGED = 6,
	EGS_NOT_YET_VALID = 7,
	EGS_EXPIRED = 8,
	EGS_IDENTITY_MISMATCH = 9,
	EGS_CGROUP_MISMATCH = 10,
	EGS_NO_NEW_PRIVS_MISSING = 11,
	EGS_SECCOMP_MISSING = 12,
	EGS_USES_EXHAUSTED = 13,
	EGS_ARGV_UNREADABLE = 14,
	EGS_ARGV_MISMATCH = 15,
	EGS_SCOPE_MISMATCH = 16,
	EGS_GATE_MISCONFIGURED = 17,
	EGS_TASKS_FULL = 18,
	EGS_ENVIRONMENT_UNREADABLE = 19,
	EGS_ENVIRONMENT_REFUSED = 20,
	EGS_FILE_OPENED = 21,
	EGS_DIGEST_DIFFERS = 22,
	EGS_SCRIPT_UNAUTHORIZED = 23,
	EGS_CODE_UNTRUSTED = 24,
	EGS_CODE_ANONYMOUS = 25,
	EGS_HOLDS_FULL = 26,
	EGS_CHILD_REFUSED = 31,
	EGS_GATE_REASONS = 32,
};

enum egs_grant_kind {
	EGS_GRANT_NONE = 0,
	EGS_GRANT_STANDING = 1,
	EGS_GRANT_ARMED = 2,
	EGS_GRANT_CHILD = 3,
};

enum egs_tier {
	EGS_TIER_TRACEPOINT = 1,
	EGS_TIER_LSM = 2,
};

enum egs_mode {
	EGS_MODE_UNUSED = 0,
	EGS_MODE_ENFORCE = 1,
	EGS_MODE_OBSERVE = 2,
};

/* What a scope does with an exec that lacks nothing but an authorization. */
enum egs_missing {
	EGS_MISSING_KILL = 0,
	EGS_MISSING_HOLD = 1,
};

/* Which kinds of scope exist: an exec outside pays only for those. */
enum egs_scope_kind {
	EGS_SCOPE_CGROUP = 1,
	EGS_SCOPE_BINARY = 2,
	EGS_SCOPE_USER = 4,
};

enum egs_grant_flag {
	EGS_BIND_UID = 1,
	EGS_BIND_CGROUP = 2,
	EGS_BIND_ARGV = 4,
	EGS_BIND_USES = 8,
	EGS_NEED_NO_NEW_PRIVS = 16,
	EGS_NEED_SECCOMP = 32,
	EGS_ALLOW_CODE_VARIABLES = 64, /* the artifact signs values for such variables */
	EGS_REFUSE_ANONYMOUS_CODE = 128,
	EGS_OWN_CHILDREN = 256, /* what it runs executes its artifact's children, and nothing else */
};

enum egs_task_flag {
	EGS_TASK_INHERITED = 1, /* forked, has not executed: its execution is its parent's */
	EGS_TASK_HELD = 2,      /* executed without an authorization, and waits for one: runs nothing until then */
	EGS_TASK_REFUSE_ANONYMOUS_CODE = 4,
	EGS_TASK_OWN_CHILDREN = 8,
	EGS_TASK_SUSPENDED = 16, /* stopped by the monitor: runs nothing until it takes that back */
};

/* What the monitor does to a process of a tree that drifted. */
enum egs_restrain {
	EGS_RESTRAIN_QUARANTINE = 1, /* it executes nothing any more */
	EGS_RESTRAIN_SUSPEND = 2,    /* it is stopped already, and dies when it comes to user space */
	EGS_RESTRAIN_RESUME = 3,     /* it may come to user space again */
};

enum egs_event_type {
	EGS_EVENT_EXEC = 1,
	EGS_EVENT_EXIT = 2,
	EGS_EVENT_CODE = 3,
	EGS_EVENT_ATTEMPT = 4,
};

enum egs_failure {
	EGS_FAIL_EVENT = 0,          /* no slot for an exec event: that exec was refused */
	EGS_FAIL_EXIT_EVENT = 1,     /* no slot for an exit event: an outcome is unknown */
	EGS_FAIL_KILL = 2,           /* the kernel refused the signal */
	EGS_FAIL_TASK_INSERT = 3,    /* a governed process could not be tracked */
	EGS_FAIL_FORK_REFUSED = 4,   /* too many governed processes: the forking one was killed */
	EGS_FAIL_STATE_READ = 5,     /* kernel memory could not be read: refused */
	EGS_FAIL_ARGV_READ = 6,      /* the new image's arguments could not be read */
	EGS_FAIL_CGROUP_INSERT = 7,  /* a re-created scope cgroup could not be noted */
	EGS_FAIL_CGROUP_DEPTH = 8,   /* a cgroup nested too deep to be placed: governed */
	EGS_FAIL_CODE_EVENT = 9,     /* no slot for the event of refused code; it was refused */
	EGS_FAIL_PENDING = 10,       /* no room for one more exec under way: refused */
	EGS_FAIL_DIGEST = 11,        /* the kernel could not hash a file: refused */
	EGS_FAIL_HOLD_BROKEN = 12,   /* a held process was let go by somebody else than the daemon: killed */
	EGS_FAIL_ATTEMPT_EVENT = 13, /* an attempt on a sealed gate that was not reported; it was refused */
	EGS_FAIL_EXEC_SKIPPED = 14,  /* the kernel skipped an exec at its tracepoint: it was decided on its way to user space */
	EGS_FAILURES = 16,
};

/* What a sealed gate refuses everybody but the daemon. */
enum egs_attempt {
	EGS_ATTEMPT_SIGNAL = 1,   /* `number`: which */
	EGS_ATTEMPT_TRACE = 2,    /* ptrace(2), /proc/PID/mem, process_vm_writev(2), pidfd_getfd(2) */
	EGS_ATTEMPT_LIMIT = 3,    /* resource limits; `number`: which */
	EGS_ATTEMPT_SCHEDULE = 4, /* scheduler, nice value */
	EGS_ATTEMPT_BPF = 5,      /* the gate's maps, programs and links; `number`: the bpf(2) command, or 0 */
	EGS_ATTEMPT_WRITE = 6,
	EGS_ATTEMPT_CREATE = 7,
	EGS_ATTEMPT_REMOVE = 8,
	EGS_ATTEMPT_RENAME = 9,
	EGS_ATTEMPT_LINK = 10,
	EGS_ATTEMPT_ATTRIBUTES = 11,
	EGS_ATTEMPT_MOUNT = 12,
	EGS_ATTEMPT_UNMOUNT = 13,
	EGS_ATTEMPT_BECOME = 14, /* the daemon's program, but it opened what is not kept: it is not the daemon */
};

enum egs_protection {
	EGS_PROTECT_CONTENT = 1, /* the file, or everything below the folder: nobody changes it */
	EGS_PROTECT_PLACE = 2,   /* the folder stays where it is: on the way to something that is kept */
};

enum egs_object_kind {
	EGS_OBJECT_MAP = 1,
	EGS_OBJECT_PROGRAM = 2,
	EGS_OBJECT_LINK = 3,
};

/* How far a program that may be the daemon has come. */
enum egs_applicant_stage {
	EGS_APPLICANT_EXECUTES = 1, /* the daemon's interpreter, in an exec that is not done */
	EGS_APPLICANT_APPLIES = 2,  /* and its arguments, environment and user */
	EGS_APPLICANT_TAINTED = 3,  /* it opened something that is not kept */
};

struct egs_config {
	__u32 abi_version;
	__u32 scope_kinds;
	__u64 grace_ns; /* CLOCK_MONOTONIC */
	__u32 tier;
	__u32 digests; /* whether the gate takes a file's digest from the kernel at the exec */
};

struct egs_scope {
	__u32 mode;
	__u32 on_missing;
	char name[EGS_SCOPE_NAME];
};

struct egs_cgroup_path {
	char path[EGS_CGROUP_PATH];
};

struct egs_file_key {
	__u64 inode;
	__u32 device;
	__u32 pad;
};

/* A name in a folder: a governed binary that is replaced (rename over it) stays governed. */
struct egs_entry_key {
	__u64 folder_inode;
	__u32 device;
	__u32 pad;
	char name[EGS_ENTRY_NAME];
};

struct egs_task {
	__u64 execution;
	__u64 artifact; /* the first 8 bytes of the id of what it runs under; 0: nothing it was authorized for */
	__u64 started; /* when it was born, boot-time clock: nobody else ever was both, this and its number; 0: not known yet */
	__u32 scope;
	__u32 flags;
	__u32 code_events;
	__u32 exec_number; /* the kernel's number of its last exec that was decided; 0: not known yet */
};

struct egs_ended_task { /* of one that was governed */
	__u64 execution;
	__u64 time; /* of its end, boot-time clock */
	__u32 scope;
	__u32 pad;
};

struct egs_file_id {
	__u64 inode;
	__s64 size;
	__s64 ctime_sec;
	__u32 ctime_nsec;
	__u32 generation;
	__u32 device;
	__u32 pad;
};

struct egs_standing_key {
	__u64 inode;
	__u32 device;
	__u16 scope;
	__u16 slot;
};

/* A file that an artifact names. `artifact` is the first 8 bytes of its id. */
struct egs_subject_key {
	__u64 artifact;
	__u64 inode;
	__u32 device;
	__u32 pad;
};

struct egs_subject {
	struct egs_file_id file;
	__u8 digest[32];
	__u64 measured; /* as in egs_grant */
};

struct egs_grant {
	__u8 artifact_id[32];
	__u8 digest[32];
	struct egs_file_id file;
	__u64 grant_id;
	__u64 not_before; /* CLOCK_BOOTTIME, ns */
	__u64 not_after;
	__u64 cgroup_id;
	__u64 argv_hash;
	__u64 start_ticks; /* armed only */
	__u64 measured; /* CLOCK_BOOTTIME, ns: void once the file was opened for writing; 0: whatever happens to it */
	__u32 argv_length;
	__u32 pad;
	__u32 flags;
	__u32 scope;
	__u32 uid;
	__u32 seccomp_filters;
};

struct egs_argv {
	__u32 length; /* bytes, NULs included */
	__u32 pad;
	__u64 words[EGS_ARGV_MAX / 8]; /* zero-padded */
};

/*
 * Environment strings that make programs load code: the first 8 bytes under a mask, in buckets by the first 3
 * bytes (EGS_VARIABLE_BUCKET). An empty entry has mask 0 and value 1, which nothing equals.
 */
struct egs_variable {
	__u64 mask;
	__u64 value;
};

struct egs_variables {
	struct egs_variable variables[EGS_VARIABLE_BUCKETS * EGS_VARIABLES_PER_BUCKET];
};

/* The answer of the reader program to "what file is descriptor N of mine?" */
struct egs_reading {
	__u64 nonce;
	__u32 found;
	__u32 failed;
	struct egs_file_id file;
	__u64 folder_inode;
	char name[EGS_ENTRY_NAME];
};

struct egs_exec_event {
	__u32 type;
	__u32 verdict;
	__u32 reason;
	__u32 enforced;
	__u64 time; /* CLOCK_BOOTTIME, ns */
	__u64 execution;
	__u64 parent_execution;
	__u64 grant_id;
	__u64 cgroup_id;
	__u64 start_ticks;
	struct egs_file_id file;
	struct egs_file_id script; /* that the kernel hands to `file`, its interpreter; all zero: none, or the tier does not see it */
	__u8 artifact_id[32];
	__u32 scope;
	__u32 grant_kind;
	__u32 pid;
	__u32 parent_pid;
	__u32 uid;
	__u32 euid;
	__u32 gid;
	__u32 no_new_privs;
	__u32 seccomp_mode;
	__u32 seccomp_filters;
	__s32 kill_error;
	__u32 argv_length; /* as in the new image; may exceed what is copied */
	__u32 argv_copied;
	__u32 pad;
	char comm[EGS_COMM];
	char filename[EGS_FILENAME_MAX];
	char argv[EGS_ARGV_SMALL]; /* EGS_ARGV_MAX bytes in a large event */
};

struct egs_seal {
	__u64 lifted_until; /* CLOCK_BOOTTIME, ns: until then the seal is there and refuses nothing */
	__u32 sealed;
	__u32 namespace;    /* the mount namespace of the host, by its inode number */
};

/* The daemon that a sealed gate protects. What it is written once, when the gate is sealed; who it is changes. */
struct egs_daemon {
	__u64 program_inode;
	__u64 pid; /* 0: it is gone */
	__u64 start_ticks;
	__u32 program_device;
	__u32 namespace; /* its mount namespace */
};

struct egs_applicant {
	__u32 stage;
	__u32 namespace;
};

struct egs_object_key {
	__u32 kind;
	__u32 id;
};

/* A file of procfs, sysfs or cgroupfs that a starting daemon may read: what is in it nobody can choose. */
struct egs_harmless_key {
	char name[EGS_HARMLESS_NAME];
};

struct egs_attempt_rate {
	__u64 second;
	__u32 count;
	__u32 pad;
};

/* Code that a governed program was refused: a mapping of a file, or memory of none. */
struct egs_code_event {
	__u32 type;
	__u32 scope;
	__u64 time;
	__u64 execution;
	struct egs_file_id file; /* all zero when there is none */
	__u32 reason;
	__u32 enforced;
	__u32 pid;
	__u32 pad;
	char name[EGS_ENTRY_NAME]; /* the folder entry that it was opened by */
};

/* Somebody tried what a sealed gate refuses. */
struct egs_attempt_event {
	__u32 type;
	__u32 what;
	__u64 time;
	__u64 inode; /* of what it was tried on; 0: no file */
	__u32 device;
	__u32 number;
	__u32 pid;
	__u32 uid;
	char comm[EGS_COMM];
	char name[EGS_ENTRY_NAME];
};

struct egs_exit_event {
	__u32 type;
	__u32 scope;
	__u64 time;
	__u64 execution;
	__u32 pid;
	__u32 status; /* as wait(2) reports it */
	__u64 cpu;    /* nanoseconds that its threads ran, as the scheduler had counted by then */
	__u64 max_rss; /* pages that were resident at most, of the process since its fork */
};

#endif
