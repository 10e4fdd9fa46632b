// SPDX-License-Identifier: GPL-2.0-only
/*
 * The gate, tier `tracepoint`: in a governed scope an exec without a grant dies before the first
 * instruction of the new image.
 *
 * Hook map
 *   gate_exec    raw_tp/sched_process_exec   decide; SIGKILL to current on refusal. The task is still in
 *                                            execve(): the signal is taken on the way back to user space,
 *                                            so the new image runs nothing.
 *   guard_exec   raw_tp/x86_fpu_regs_activated   where gate_exec can be skipped (Linux 7.0): an exec that was not
 *                                            decided is decided on its way to user space.
 *   gate_fork    raw_tp/sched_wakeup_new     a governed process's child is governed. Its parent is current, and holds
 *                                            the run queue's lock: the child cannot run first, and nobody is
 *                                            preempted. From Linux 7.0 on tracepoints can be (a46023d5616e), and
 *                                            the kernel skips a program that another task on the CPU is inside of.
 *   gate_exit    raw_tp/sched_process_exit   forget the process, report the outcome.
 *   guard_exit   raw_tp/sched_process_free   where gate_exit can be skipped: the same, a moment later.
 *   gate_attach  raw_tp/cgroup_attach_task   a process moved into a scope's subtree is governed from then on.
 *   gate_mkdir   raw_tp/cgroup_mkdir         a scope's cgroup that is created (again) is the scope. Fires
 *                                            before kernfs_activate(): nobody can be inside yet.
 *   gate_rmdir   raw_tp/cgroup_rmdir         forget its id.
 *   guard_return raw_tp/x86_fpu_regs_activated  while a scope holds: kills who comes to user space although it is
 *   guard_fault  raw_tp/page_fault_user         held (hold.bpf.c)
 *   read_file    never attached; run by BPF_PROG_TEST_RUN: the same identity that the gate compares, of a
 *                file that the caller has open.
 *   set_task     never attached; run by BPF_PROG_TEST_RUN: puts a process under a scope, or releases it,
 *                with the same bookkeeping as the hooks.
 *   release_hold never attached; run by BPF_PROG_TEST_RUN: what is held may run.
 *   restrain_task never attached; run by BPF_PROG_TEST_RUN: a process that drifted executes nothing more, or stays stopped.
 *
 * No kernel struct is dereferenced here: bcc silently miscompiles offsets of some of them. Every offset
 * comes from the running kernel's BTF as -DOFF_struct_field=N and is read with bpf_probe_read_kernel, and
 * the loader's self-test proves them before anything is enforced (egs_kernel/gate/selftest.py).
 *
 * Policy reaches this program through maps only. Maps that deny never forget (no LRU).
 */
#include "egs_abi.h"
#include "egs_read.h"

#define EGS_SIGKILL 9
#define EGS_TICK_NS 10000000ULL /* 1 s / USER_HZ, which is 100 but on Alpha and IA-64 */
#define EGS_SIGNAL_GROUP_EXIT 4
#define EGS_PFA_NO_NEW_PRIVS 1 /* bit 0 of task_struct.atomic_flags */
#define EGS_CAS_TRIES 8
#define EGS_ARGV_HASH 0x9e3779b97f4a7c15ULL
#define EGS_DIGEST 32
#define EGS_OVERFLOWED 1 /* index into task_counts */

BPF_ARRAY(gate_configs, struct egs_config, 1);
BPF_ARRAY(heartbeats, u64, 1);
BPF_ARRAY(scopes, struct egs_scope, EGS_SCOPE_SLOTS);
BPF_HASH(scope_cgroups, u64, u32, 1024);
BPF_HASH(scope_paths, struct egs_cgroup_path, u32, EGS_MAX_SCOPES);
BPF_HASH(scope_files, struct egs_file_key, u32, 1024);
BPF_HASH(scope_entries, struct egs_entry_key, u32, 1024);
BPF_HASH(scope_users, u32, u32, 1024);
BPF_HASH(tasks, u32, struct egs_task, EGS_TASKS);
BPF_TABLE("lru_hash", u32, struct egs_ended_task, ended_tasks, EGS_ENDED); /* denies nothing: may forget */
BPF_ARRAY(task_counts, u64, 2); /* [0] how many are tracked; [1] whether one ever could not be */
BPF_ARRAY(held_counts, u64, 1);
BPF_HASH(standing_grants, struct egs_standing_key, struct egs_grant, EGS_GRANTS);
BPF_HASH(armed_grants, u32, struct egs_grant, EGS_GRANTS);
BPF_HASH(grant_uses, u64, u64, EGS_GRANTS * 2);
BPF_F_TABLE("hash", u64, struct egs_argv, grant_argvs, EGS_GRANTS * 2, BPF_F_NO_PREALLOC);
BPF_ARRAY(code_variables, struct egs_variables, 1);
BPF_PERCPU_ARRAY(decisions, u64, 8 * EGS_GATE_REASONS);
BPF_PERCPU_ARRAY(failures, u64, EGS_FAILURES);
BPF_ARRAY(readings, struct egs_reading, 1);
BPF_HASH(subjects, struct egs_subject_key, struct egs_subject, EGS_SUBJECTS);
BPF_HASH(measured_files, struct egs_file_key, u64, EGS_SUBJECTS); /* when it may last have been opened for writing */
BPF_HASH(library_folders, struct egs_file_key, u32, EGS_LIBRARY_FOLDERS);
BPF_RINGBUF_OUTPUT(events, EGS_RING_PAGES);

/* What the gate knows of one exec, read once. */
struct exec_facts {
	struct egs_file_id file;
	u64 now;
	u64 opened; /* for writing, the last time */
	u64 cgroup_id;
	u64 own; /* the artifact whose children it may execute, and nothing else; 0: it is not bound so */
	u64 start_ticks;
	u64 argv_start;
	u64 argv_hash;
	u32 argv_length;
	u32 pid;
	u32 uid;
	u32 euid;
	u32 gid;
	u32 parent_pid;
	u32 no_new_privs;
	u32 seccomp_mode;
	u32 seccomp_filters;
	u32 argv_read;
	u32 environment; /* EGS_AUTHORIZED, or why it is refused */
	u32 unreadable;  /* something above could not be read */
	u64 environment_start;
	u64 environment_end;
	/* Known on the tier `lsm` alone, from its own hook (lsm.bpf.c). */
	u32 script_seen;
	u32 digests; /* whether the two digests are the kernel's */
	u32 recalled; /* whether that hook saw the exec; on the other tier nothing is missing */
	struct egs_file_id script;
	u8 digest[EGS_DIGEST];
	u8 script_digest[EGS_DIGEST];
};

/* What the decision found. */
struct decision {
	u32 reason;
	u32 kind;
	u64 grant_id;
	u32 flags; /* of the grant */
	u32 spent; /* one use of it was taken */
	u8 artifact_id[32];
	u8 digest[EGS_DIGEST]; /* that the grant is for */
};

/*
 * Per CPU and not on the stack: it would not fit, and the verifier does not track what is stored in a map,
 * which lets it prune the grant loop. Raw tracepoints run with preemption off, so nobody else writes here.
 */
struct scratch {
	struct exec_facts facts;
	struct decision decision;
	struct egs_argv argv;
	u64 string[EGS_ENV_STRING / 8];
};
BPF_PERCPU_ARRAY(scratches, struct scratch, 2); /* [0] gate_exec's; [1] guard_exec's, which may come in between */

/*
 * A number as the verifier has never seen it. A loop's bound that it remembers has another range at each way
 * out of the loop, and it follows each of them to the end.
 */
#define forget(number) (*(volatile typeof(number) *)&(number))

/* Atomic though per CPU: the hooks of the tier `lsm` can be preempted. */
static __always_inline void count_failure(u32 which)
{
	u64 *count = failures.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline void count_decision(u32 verdict, u32 reason, u32 enforced)
{
	u32 index = (((enforced ? 0 : 4) + verdict) * EGS_GATE_REASONS) + reason;
	u64 *count = decisions.lookup(&index);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline int same_file(struct egs_file_id *a, struct egs_file_id *b)
{
	return a->inode == b->inode && a->device == b->device && a->generation == b->generation &&
	       a->size == b->size && a->ctime_sec == b->ctime_sec && a->ctime_nsec == b->ctime_nsec;
}

static __always_inline int same_digest(u8 *a, u8 *b)
{
	u64 *left = (u64 *)a, *right = (u64 *)b;

	return !((left[0] ^ right[0]) | (left[1] ^ right[1]) | (left[2] ^ right[2]) | (left[3] ^ right[3]));
}

/*
 * When a file was last opened for writing, as the hook of the tier `lsm` notes for those that are measured; of any
 * other file nobody knows, and so it may be right now.
 */
static __always_inline u64 last_opened(struct egs_file_id *id)
{
	struct egs_file_key key = { .inode = id->inode, .device = id->device };
	u64 *opened = measured_files.lookup(&key);

	return opened ? *opened : ~0ULL;
}

/* Whether what was measured then is void; 0: it was measured to last, whatever happens to the file. */
static __always_inline int opened_since(u64 opened, u64 measured)
{
	return measured && opened >= measured;
}

static __always_inline u64 artifact_key(u8 *artifact_id)
{
	return *(u64 *)artifact_id;
}
