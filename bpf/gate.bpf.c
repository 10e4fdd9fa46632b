// SPDX-License-Identifier: GPL-2.0-only
/*
 * The gate, tier `tracepoint`: in a governed scope an exec without a grant dies before the first
 * instruction of the new image.
 *
 * Hook map
 *   gate_exec    raw_tp/sched_process_exec   decide; SIGKILL to current on refusal. The task is still in
 *                                            execve(): the signal is taken on the way back to user space,
 *                                            so the new image runs nothing.
 *   gate_fork    raw_tp/sched_process_fork   a governed process's child is governed. Runs before the child
 *                                            is woken (kernel_clone), so the child cannot exec first.
 *   gate_exit    raw_tp/sched_process_exit   forget the process, report the outcome.
 *   gate_attach  raw_tp/cgroup_attach_task   a process moved into a scope's subtree is governed from then on.
 *   gate_mkdir   raw_tp/cgroup_mkdir         a scope's cgroup that is created (again) is the scope. Fires
 *                                            before kernfs_activate(): nobody can be inside yet.
 *   gate_rmdir   raw_tp/cgroup_rmdir         forget its id.
 *   read_file    never attached; run by BPF_PROG_TEST_RUN: the same identity that the gate compares, of a
 *                file that the caller has open.
 *   set_task     never attached; run by BPF_PROG_TEST_RUN: puts a process under a scope, or releases it,
 *                with the same bookkeeping as the hooks.
 *
 * No kernel struct is dereferenced here: bcc silently miscompiles offsets of some of them. Every offset
 * comes from the running kernel's BTF as -DOFF_struct_field=N and is read with bpf_probe_read_kernel, and
 * the loader's self-test proves them before anything is enforced (egs_kernel/gate/selftest.py).
 *
 * Policy reaches this program through maps only. Maps that deny never forget (no LRU).
 */
#include "egs_abi.h"

#define EGS_SIGKILL 9
#define EGS_TICK_NS 10000000ULL /* 1 s / USER_HZ, which is 100 but on Alpha and IA-64 */
#define EGS_SIGNAL_GROUP_EXIT 4
#define EGS_PFA_NO_NEW_PRIVS 1 /* bit 0 of task_struct.atomic_flags */
#define EGS_CTIME_NSEC_MASK 0x7fffffff /* bit 31 flags multigrain timestamps (6.13, 4e40eff0b573) */
#define EGS_CAS_TRIES 8
#define EGS_ARGV_HASH 0x9e3779b97f4a7c15ULL
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
BPF_ARRAY(task_counts, u64, 2); /* [0] how many are tracked; [1] whether one ever could not be */
BPF_HASH(standing_grants, struct egs_standing_key, struct egs_grant, EGS_GRANTS);
BPF_HASH(armed_grants, u32, struct egs_grant, EGS_GRANTS);
BPF_HASH(grant_uses, u64, u64, EGS_GRANTS * 2);
BPF_F_TABLE("hash", u64, struct egs_argv, grant_argvs, EGS_GRANTS * 2, BPF_F_NO_PREALLOC);
BPF_ARRAY(code_variables, struct egs_variables, 1);
BPF_PERCPU_ARRAY(decisions, u64, 8 * EGS_GATE_REASONS);
BPF_PERCPU_ARRAY(failures, u64, EGS_FAILURES);
BPF_ARRAY(readings, struct egs_reading, 1);
BPF_RINGBUF_OUTPUT(events, EGS_RING_PAGES);

/* What the gate knows of one exec, read once. */
struct exec_facts {
	struct egs_file_id file;
	u64 now;
	u64 cgroup_id;
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
	u32 pad;
	u64 environment_start;
	u64 environment_end;
};

/* What the decision found. */
struct decision {
	u32 reason;
	u32 kind;
	u64 grant_id;
	u32 flags; /* of the grant */
	u32 spent; /* one use of it was taken */
	u8 artifact_id[32];
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
BPF_PERCPU_ARRAY(scratches, struct scratch, 1);

/*
 * A number as the verifier has never seen it. A loop's bound that it remembers has another range at each way
 * out of the loop, and it follows each of them to the end.
 */
#define forget(number) (*(volatile typeof(number) *)&(number))

static __always_inline void count_failure(u32 which)
{
	u64 *count = failures.lookup(&which);

	if (count)
		*count += 1; /* per CPU, preemption off */
}

static __always_inline void count_decision(u32 verdict, u32 reason, u32 enforced)
{
	u32 index = (((enforced ? 0 : 4) + verdict) * EGS_GATE_REASONS) + reason;
	u64 *count = decisions.lookup(&index);

	if (count)
		*count += 1;
}

static __always_inline u64 read_pointer(u64 base, u32 offset)
{
	u64 value = 0;

	/* A failed read yields NULL, and the next read from it fails and is noticed. */
	bpf_probe_read_kernel(&value, sizeof(value), (void *)(base + offset));
	return value;
}

static __always_inline int read_field(void *to, u32 size, u64 base, u32 offset)
{
	return bpf_probe_read_kernel(to, size, (void *)(base + offset));
}

/* The one notion of "the same file": shared by the gate and by the reader that measures for it. */
static __always_inline int read_file_id(struct egs_file_id *id, u64 file)
{
	u64 inode = read_pointer(file, OFF_file_f_inode);
	u64 super = read_pointer(inode, OFF_inode_i_sb);
	unsigned long number = 0;
	int failed = 0;

	failed |= read_field(&number, sizeof(number), inode, OFF_inode_i_ino);
	failed |= read_field(&id->size, sizeof(id->size), inode, OFF_inode_i_size);
	failed |= read_field(&id->ctime_sec, sizeof(id->ctime_sec), inode, OFF_inode_ctime_sec);
	failed |= read_field(&id->ctime_nsec, sizeof(id->ctime_nsec), inode, OFF_inode_ctime_nsec);
	failed |= read_field(&id->generation, sizeof(id->generation), inode, OFF_inode_i_generation);
	failed |= read_field(&id->device, sizeof(id->device), super, OFF_super_block_s_dev);
	id->inode = number;
	id->ctime_nsec &= EGS_CTIME_NSEC_MASK;
	id->pad = 0;
	return failed;
}

static __always_inline int same_file(struct egs_file_id *a, struct egs_file_id *b)
{
	return a->inode == b->inode && a->device == b->device && a->generation == b->generation &&
	       a->size == b->size && a->ctime_sec == b->ctime_sec && a->ctime_nsec == b->ctime_nsec;
}

/* ---- scopes ---------------------------------------------------------------------------------- */

/* The scope whose cgroup is `cgroup` or one of its ancestors; -1 when none. */
static __always_inline int scope_of_cgroup(u64 cgroup)
{
	for (int level = 0; level < EGS_CGROUP_DEPTH; level++) {
		u64 id = 0;
		u64 node = read_pointer(cgroup, OFF_cgroup_kn);
		u32 *scope;
		u64 parent;

		if (read_field(&id, sizeof(id), node, OFF_kernfs_node_id)) {
			count_failure(EGS_FAIL_STATE_READ);
			return -1;
		}
		scope = scope_cgroups.lookup(&id);
		if (scope)
			return *scope;
		parent = read_pointer(cgroup, OFF_cgroup_self + OFF_cgroup_subsys_state_parent);
		if (!parent)
			return -1;
		cgroup = parent - OFF_cgroup_self;
	}
	/* Deeper than anyone nests. Not knowing is no permission: a slot that no scope uses refuses. */
	count_failure(EGS_FAIL_CGROUP_DEPTH);
	return EGS_SCOPE_SLOTS;
}

/* Only the v2 hierarchy (id 0) has scopes; v1 cgroups have ids of their own that may collide. */
static __always_inline int on_default_hierarchy(u64 cgroup)
{
	u64 root = read_pointer(cgroup, OFF_cgroup_root);
	int hierarchy = -1;

	read_field(&hierarchy, sizeof(hierarchy), root, OFF_cgroup_root_hierarchy_id);
	return hierarchy == 0;
}

/*
 * Once a process could not be tracked, the table alone is no answer any more: those that are not in it are
 * looked for in the scopes' cgroups, too, until the gate is loaded again.
 */
static __always_inline int has_overflowed(void)
{
	u32 index = EGS_OVERFLOWED;
	u64 *overflowed = task_counts.lookup(&index);

	return !overflowed || *overflowed;
}

static __always_inline u64 cgroup_of(u64 task)
{
	return read_pointer(read_pointer(task, OFF_task_struct_cgroups), OFF_css_set_dfl_cgrp);
}

/* Track a process as governed. The first scope stays: a process cannot leave it for a laxer one. */
static __always_inline int govern(u32 pid, u32 scope, u64 execution, u32 flags)
{
	struct egs_task task = { .execution = execution, .scope = scope, .flags = flags };
	u32 zero = 0, index = EGS_OVERFLOWED;
	u64 *count = task_counts.lookup(&zero);
	u64 *overflowed = task_counts.lookup(&index);
	int error = tasks.insert(&pid, &task);

	if (error == 0) {
		if (count)
			__sync_fetch_and_add(count, 1);
		return 0;
	}
	if (tasks.lookup(&pid))
		return 0; /* governed already */
	count_failure(EGS_FAIL_TASK_INSERT);
	if (overflowed)
		*overflowed = 1;
	return error;
}

/* A process that was just born: what the table has under its number is of one that bore it before. */
static __always_inline void govern_newborn(u32 pid, u32 scope, u64 execution)
{
	struct egs_task *stale = tasks.lookup(&pid);

	if (!stale) {
		govern(pid, scope, execution, EGS_TASK_INHERITED);
		return;
	}
	stale->execution = execution;
	stale->scope = scope;
	stale->flags = EGS_TASK_INHERITED;
}

static __always_inline int release(u32 pid)
{
	u32 zero = 0;
	u64 *count = task_counts.lookup(&zero);
	int error = tasks.delete(&pid);

	if (!error && count)
		__sync_fetch_and_add(count, -1);
	return error;
}

static __always_inline int scope_of_program(u64 file, struct egs_file_id *id)
{
	struct egs_file_key key = { .inode = id->inode, .device = id->device };
	struct egs_entry_key entry = { .device = id->device };
	u64 dentry = read_pointer(file, OFF_file_f_path + OFF_path_dentry);
	u64 folder = read_pointer(read_pointer(dentry, OFF_dentry_d_parent), OFF_dentry_d_inode);
	u64 name = read_pointer(dentry, OFF_dentry_d_name + OFF_qstr_name);
	unsigned long number = 0;
	u32 *scope = scope_files.lookup(&key);

	if (scope)
		return *scope;
	if (read_field(&number, sizeof(number), folder, OFF_inode_i_ino))
		return -1;
	entry.folder_inode = number;
	if (bpf_probe_read_kernel_str(entry.name, sizeof(entry.name), (void *)name) < 0)
		return -1;
	scope = scope_entries.lookup(&entry);
	return scope ? *scope : -1;
}

static __always_inline int scope_of_user(u32 uid, u32 euid)
{
	u32 *scope = scope_users.lookup(&uid);

	if (!scope)
		scope = scope_users.lookup(&euid);
	return scope ? *scope : -1;
}

/* ---- the decision ---------------------------------------------------------------------------- */

static __always_inline int read_facts(struct exec_facts *facts, u64 task, u64 file)
{
	u64 cred = read_pointer(task, OFF_task_struct_cred);
	u64 mm = read_pointer(task, OFF_task_struct_mm);
	u64 parent = read_pointer(task, OFF_task_struct_real_parent);
	u64 argv_end = 0;
	u64 start = 0;
	unsigned long atomic_flags = 0;
	int failed = 0;

	facts->now = bpf_ktime_get_boot_ns();
	facts->pid = bpf_get_current_pid_tgid() >> 32;
	facts->cgroup_id = bpf_get_current_cgroup_id();
	failed |= read_file_id(&facts->file, file);
	failed |= read_field(&facts->uid, sizeof(u32), cred, OFF_cred_uid);
	failed |= read_field(&facts->euid, sizeof(u32), cred, OFF_cred_euid);
	failed |= read_field(&facts->gid, sizeof(u32), cred, OFF_cred_gid);
	failed |= read_field(&facts->parent_pid, sizeof(u32), parent, OFF_task_struct_tgid);
	failed |= read_field(&start, sizeof(start), task, OFF_task_struct_start_boottime);
	failed |= read_field(&atomic_flags, sizeof(atomic_flags), task, OFF_task_struct_atomic_flags);
	failed |= read_field(&facts->seccomp_mode, sizeof(u32), task,
			     OFF_task_struct_seccomp + OFF_seccomp_mode);
	failed |= read_field(&facts->seccomp_filters, sizeof(u32), task,
			     OFF_task_struct_seccomp + OFF_seccomp_filter_count);
	failed |= read_field(&facts->argv_start, sizeof(u64), mm, OFF_mm_struct_arg_start);
	failed |= read_field(&argv_end, sizeof(u64), mm, OFF_mm_struct_arg_end);
	failed |= read_field(&facts->environment_start, sizeof(u64), mm, OFF_mm_struct_env_start);
	failed |= read_field(&facts->environment_end, sizeof(u64), mm, OFF_mm_struct_env_end);
	facts->start_ticks = start / EGS_TICK_NS;
	facts->no_new_privs = atomic_flags & EGS_PFA_NO_NEW_PRIVS;
	if (argv_end < facts->argv_start || argv_end - facts->argv_start > 0x7fffffff)
		failed = 1;
	facts->argv_length = argv_end - facts->argv_start;
	return failed;
}

/*
 * To find the grant among several for one file; whether the arguments are its is then compared byte by byte.
 * A collision refuses. gate/pins.py computes the same.
 */
static __always_inline u64 hash_argv(struct egs_argv *argv)
{
	u64 hash = argv->length;

	for (u32 i = 0; i < EGS_ARGV_MAX / 8; i++) {
		u64 j = i;

		if (i * 8 >= forget(argv->length))
			break;
		asm volatile("%0 &= 0x1ff" : "+r"(j));
		hash = (hash ^ argv->words[j]) * EGS_ARGV_HASH;
		hash ^= hash >> 32;
	}
	return hash;
}

/* The arguments, as the new image will find them, into this CPU's buffer. */
static __always_inline void read_argv(struct exec_facts *facts, struct egs_argv *buffer)
{
	u64 length = facts->argv_length;
	u64 last;

	facts->argv_read = 0;
	if (length > EGS_ARGV_MAX)
		length = EGS_ARGV_MAX;
	last = length >> 3;
	asm volatile("%0 &= 0x1ff" : "+r"(last)); /* for the verifier: words[] has 512 */
	buffer->words[last] = 0; /* the tail of the last word compares as padding */
	asm volatile("%0 &= 0x1fff" : "+r"(length));
	if (length > EGS_ARGV_MAX)
		return;
	if (bpf_probe_read_user(buffer->words, length, (void *)facts->argv_start)) {
		count_failure(EGS_FAIL_ARGV_READ);
		return;
	}
	buffer->length = length;
	facts->argv_hash = hash_argv(buffer);
	facts->argv_read = 1;
}

/*
 * Whether the string makes programs load code (LD_PRELOAD=…); beyond its NUL nothing matters, no name has one.
 * Without branches: with them the verifier has more paths to follow than it will.
 */
static __always_inline u64 is_code_variable(struct egs_variables *known, u64 *string)
{
	u64 word = *string;
	u64 entry = EGS_VARIABLE_BUCKET(word & 0xff, (word >> 8) & 0xff, (word >> 16) & 0xff);
	u64 found = 0;

	entry *= EGS_VARIABLES_PER_BUCKET;
	asm volatile("%0 &= 0xf8" : "+r"(entry)); /* for the verifier: there are 256 */
#pragma unroll
	for (int i = 0; i < EGS_VARIABLES_PER_BUCKET; i++) {
		struct egs_variable *variable = &known->variables[entry + i];
		u64 differs = (word & variable->mask) ^ variable->value;

		found |= ~(differs | -differs) >> 63; /* 1 when nothing differs */
	}
	return found;
}

/* The environment of the new image, string by string. */
static __always_inline u32 judge_environment(struct exec_facts *facts, u64 *string)
{
	u32 zero = 0;
	struct egs_variables *known = code_variables.lookup(&zero);
	u64 at = facts->environment_start;
	u64 found = 0;

	if (!known)
		return EGS_GATE_MISCONFIGURED;
	for (u32 i = 0; i < EGS_ENV_STRINGS; i++) {
		long length;

		if (at >= forget(facts->environment_end))
			return found ? EGS_ENVIRONMENT_REFUSED : EGS_AUTHORIZED;
		length = bpf_probe_read_user_str(string, EGS_ENV_STRING, (void *)at);
		if (length <= 0)
			return EGS_ENVIRONMENT_UNREADABLE;
		found |= is_code_variable(known, string);
		/*
		 * What is longer goes on in the next piece, after the NUL that is not there; at worst it is refused for
		 * what is in its middle.
		 */
		at += length - length / EGS_ENV_STRING;
	}
	return EGS_ENVIRONMENT_UNREADABLE; /* more variables than anybody has */
}

static __always_inline u32 argv_permitted(u64 grant_id, struct exec_facts *facts, struct egs_argv *buffer)
{
	struct egs_argv *bound = grant_argvs.lookup(&grant_id);
	u64 differs = 0;

	if (!bound)
		return EGS_GATE_MISCONFIGURED;
	if (facts->argv_length != bound->length)
		return EGS_ARGV_MISMATCH;
	for (u32 i = 0; i < EGS_ARGV_MAX / 8; i++) {
		u64 j = i;

		if (i * 8 >= forget(bound->length))
			break;
		asm volatile("%0 &= 0x1ff" : "+r"(j));
		differs |= buffer->words[j] ^ bound->words[j];
	}
	return differs ? EGS_ARGV_MISMATCH : EGS_AUTHORIZED;
}

/* Enough to choose a grant; settle() takes the use. */
static __always_inline int has_use(u64 grant_id)
{
	u64 *left = grant_uses.lookup(&grant_id);

	return left && *left;
}

/* Take one use, exactly once, however many CPUs want the last. */
static __always_inline u32 take_use(u64 grant_id)
{
	u64 *left = grant_uses.lookup(&grant_id);

	if (!left)
		return EGS_GATE_MISCONFIGURED;
	for (int i = 0; i < EGS_CAS_TRIES; i++) {
		u64 seen = *left;

		if (seen == 0)
			return EGS_USES_EXHAUSTED;
		if (__sync_val_compare_and_swap(left, seen, seen - 1) == seen)
			return EGS_AUTHORIZED;
	}
	return EGS_USES_EXHAUSTED; /* lost every race: refuse rather than guess */
}

/* One grant against one exec, in the order of docs/architecture.md. */
static __always_inline u32 conditions_hold(struct egs_grant *grant, struct exec_facts *facts, u32 scope)
{
	u32 flags = grant->flags;

	if (grant->scope != scope)
		return EGS_SCOPE_MISMATCH;
	if (grant->file.inode != facts->file.inode || grant->file.device != facts->file.device)
		return EGS_SUBJECT_MISMATCH;
	if (!same_file(&grant->file, &facts->file))
		return EGS_FILE_CHANGED;
	if (facts->now < grant->not_before)
		return EGS_NOT_YET_VALID;
	if (facts->now >= grant->not_after)
		return EGS_EXPIRED;
	/* Both: a set-user-ID program changes who it is, and the artifact did not say so. */
	if ((flags & EGS_BIND_UID) && (facts->uid != grant->uid || facts->euid != grant->uid))
		return EGS_IDENTITY_MISMATCH;
	if ((flags & EGS_BIND_CGROUP) && facts->cgroup_id != grant->cgroup_id)
		return EGS_CGROUP_MISMATCH;
	if ((flags & EGS_NEED_NO_NEW_PRIVS) && !facts->no_new_privs)
		return EGS_NO_NEW_PRIVS_MISSING;
	if ((flags & EGS_NEED_SECCOMP) &&
	    (facts->seccomp_mode != 2 || facts->seccomp_filters != grant->seccomp_filters))
		return EGS_SECCOMP_MISSING;
	if ((flags & EGS_BIND_ARGV) && !facts->argv_read)
		return EGS_ARGV_UNREADABLE;
	if ((flags & EGS_BIND_ARGV) &&
	    (facts->argv_length != grant->argv_length || facts->argv_hash != grant->argv_hash))
		return EGS_ARGV_MISMATCH;
	if (facts->environment != EGS_AUTHORIZED && !(flags & EGS_ALLOW_CODE_VARIABLES))
		return facts->environment;
	if ((flags & EGS_BIND_USES) && !has_use(grant->grant_id))
		return EGS_USES_EXHAUSTED;
	return EGS_AUTHORIZED;
}

/*
 * A grant that is withdrawn meanwhile may have its memory taken by another one, on another CPU, while it is read
 * here: elements of a hash are used again at once. Ids are never used again, and lie before what is compared last.
 */
static __always_inline u32 grant_permits(struct egs_grant *grant, struct exec_facts *facts, u32 scope)
{
	u64 id = forget(grant->grant_id);
	u32 reason = conditions_hold(grant, facts, scope);

	return forget(grant->grant_id) == id ? reason : EGS_NO_GRANT;
}

static __always_inline void cite(struct decision *decision, struct egs_grant *grant, u32 kind, u32 reason)
{
	decision->reason = reason;
	decision->kind = kind;
	decision->grant_id = grant->grant_id;
	decision->flags = grant->flags;
	__builtin_memcpy(decision->artifact_id, grant->artifact_id, sizeof(grant->artifact_id));
}

static __always_inline void consult_grants(struct decision *decision, struct exec_facts *facts, u32 scope)
{
	struct egs_standing_key key = { .inode = facts->file.inode, .device = facts->file.device, .scope = scope };
	u32 pid = facts->pid;
	struct egs_grant *armed = armed_grants.lookup(&pid);

	decision->reason = EGS_NO_GRANT;
	if (armed) {
		/* An armed task executes what it was armed for, or nothing: no falling back. */
		u32 reason = armed->start_ticks != facts->start_ticks ?
			EGS_IDENTITY_MISMATCH : grant_permits(armed, facts, scope);

		cite(decision, armed, EGS_GRANT_ARMED, reason);
		armed_grants.delete(&pid);
		return;
	}
	for (u32 slot = 0; slot < EGS_GRANTS_PER_FILE; slot++) {
		struct egs_grant *grant;
		u32 reason;

		/* Left here and not below: Linux 6.1 takes no loop that falls through into its own head. */
		if (forget(decision->reason) == EGS_AUTHORIZED)
			break;
		key.slot = slot;
		grant = standing_grants.lookup(&key);
		if (!grant)
			continue;
		reason = grant_permits(grant, facts, scope);
		if (reason == EGS_AUTHORIZED || reason >= decision->reason)
			cite(decision, grant, EGS_GRANT_STANDING, reason);
	}
}

static __always_inline int daemon_is_stale(struct egs_config *config)
{
	u32 zero = 0;
	u64 *beat = heartbeats.lookup(&zero);
	u64 now = bpf_ktime_get_ns();

	if (!beat || !*beat)
		return 1;
	/* A beat from the future is no beat. */
	return now > *beat ? now - *beat > config->grace_ns : *beat - now > config->grace_ns;
}

/* What the chosen grant binds to the byte, and what it has only once; last, so that a refused exec costs no use. */
static __always_inline void settle(struct scratch *scratch)
{
	struct decision *decision = &scratch->decision;

	if (decision->reason == EGS_AUTHORIZED && (decision->flags & EGS_BIND_ARGV))
		decision->reason = argv_permitted(decision->grant_id, &scratch->facts, &scratch->argv);
	if (decision->reason == EGS_AUTHORIZED && (decision->flags & EGS_BIND_USES)) {
		decision->reason = take_use(decision->grant_id);
		decision->spent = decision->reason == EGS_AUTHORIZED;
	}
}

/* The decision, in the order of docs/architecture.md; each uncertain path refuses. */
static __always_inline void decide(struct scratch *scratch, struct egs_config *config, u32 scope)
{
	struct decision *decision = &scratch->decision;

	if (daemon_is_stale(config)) {
		decision->reason = EGS_DAEMON_STALE;
	} else if (scratch->facts.unreadable) {
		decision->reason = EGS_STATE_UNREADABLE;
	} else {
		consult_grants(decision, &scratch->facts, scope);
		settle(scratch);
	}
}

/* No audit slot, no exec: what was authorized is refused after all, and gets its use back. */
static __always_inline void refuse_unrecorded(struct decision *decision)
{
	u64 id = decision->grant_id;
	u64 *left;

	count_failure(EGS_FAIL_EVENT);
	if (decision->reason != EGS_AUTHORIZED)
		return;
	decision->reason = EGS_AUDIT_UNAVAILABLE;
	left = grant_uses.lookup(&id);
	if (left && decision->spent)
		__sync_fetch_and_add(left, 1);
}

/* ---- gate_exec ------------------------------------------------------------------------------- */

static __always_inline void describe(struct egs_exec_event *event, struct scratch *scratch, u64 bprm)
{
	struct exec_facts *facts = &scratch->facts;
	struct decision *decision = &scratch->decision;
	u64 filename = read_pointer(bprm, OFF_linux_binprm_filename);

	event->type = EGS_EVENT_EXEC;
	event->time = facts->now;
	event->cgroup_id = facts->cgroup_id;
	event->start_ticks = facts->start_ticks;
	event->file = facts->file;
	event->pid = facts->pid;
	event->parent_pid = facts->parent_pid;
	event->uid = facts->uid;
	event->euid = facts->euid;
	event->gid = facts->gid;
	event->no_new_privs = facts->no_new_privs;
	event->seccomp_mode = facts->seccomp_mode;
	event->seccomp_filters = facts->seccomp_filters;
	event->argv_length = facts->argv_length;
	event->reason = decision->reason;
	event->grant_kind = decision->kind;
	event->grant_id = decision->grant_id;
	event->kill_error = 0;
	event->pad = 0;
	event->execution = 0;
	event->parent_execution = 0;
	__builtin_memcpy(event->artifact_id, decision->artifact_id, sizeof(event->artifact_id));
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	if (bpf_probe_read_kernel_str(event->filename, sizeof(event->filename), (void *)filename) < 0)
		event->filename[0] = 0;
}

/* A slot for the event, with room for the arguments as the new image has them; none: no exec. */
static __always_inline struct egs_exec_event *reserve_event(struct exec_facts *facts, struct egs_argv *buffer)
{
	u64 length = facts->argv_length;
	struct egs_exec_event *event;

	if (length <= EGS_ARGV_SMALL) {
		event = events.ringbuf_reserve(sizeof(struct egs_exec_event));
		if (!event)
			return 0;
		asm volatile("%0 &= 0x1ff" : "+r"(length));
		if (length > EGS_ARGV_SMALL || !facts->argv_read)
			length = 0;
		bpf_probe_read_kernel(event->argv, length, buffer->words);
	} else {
		event = events.ringbuf_reserve(sizeof(struct egs_exec_event) + EGS_ARGV_MAX - EGS_ARGV_SMALL);
		if (!event)
			return 0;
		if (length > EGS_ARGV_MAX)
			length = EGS_ARGV_MAX;
		asm volatile("%0 &= 0x1fff" : "+r"(length));
		if (length > EGS_ARGV_MAX || !facts->argv_read)
			length = 0;
		bpf_probe_read_kernel(event->argv, length, buffer->words);
	}
	event->argv_copied = length;
	return event;
}

/* A task that is not tracked yet may enter a scope by what it executes or by who it is. */
static __always_inline int scope_of_newcomer(struct egs_config *config, u64 task, u64 file)
{
	int scope = -1;

	if (config->scope_kinds & EGS_SCOPE_BINARY) {
		struct egs_file_id id = {};

		if (read_file_id(&id, file))
			count_failure(EGS_FAIL_STATE_READ);
		else
			scope = scope_of_program(file, &id);
	}
	if (scope < 0 && (config->scope_kinds & EGS_SCOPE_CGROUP) && has_overflowed())
		scope = scope_of_cgroup(cgroup_of(task));
	if (scope < 0 && (config->scope_kinds & EGS_SCOPE_USER)) {
		u64 cred = read_pointer(task, OFF_task_struct_cred);
		u32 uid = 0, euid = 0;

		if (read_field(&uid, sizeof(uid), cred, OFF_cred_uid) ||
		    read_field(&euid, sizeof(euid), cred, OFF_cred_euid))
			count_failure(EGS_FAIL_STATE_READ);
		else
			scope = scope_of_user(uid, euid);
	}
	return scope;
}

/* An id that no other execution of this boot has: one CPU cannot finish two execs within 1 us. */
static __always_inline u64 new_execution(u64 now)
{
	return (now & ~0x3ffULL) | (bpf_get_smp_processor_id() & 0x3ff);
}

static __always_inline u32 scope_mode(u32 scope)
{
	struct egs_scope *slot = scopes.lookup(&scope);

	return slot ? slot->mode : EGS_MODE_UNUSED;
}

int gate_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 current_task = ctx->args[0];
	u64 bprm = ctx->args[2];
	u32 zero = 0;
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct egs_config *config = gate_configs.lookup(&zero);
	struct egs_task *task = tasks.lookup(&pid);
	struct scratch *scratch = scratches.lookup(&zero);
	struct decision *decision;
	struct egs_exec_event *event;
	u32 verdict, mode, enforced;
	int untracked = 0;
	int scope;
	u64 file;

	if (!config || !scratch) /* arrays of one: cannot miss */
		return 0;
	/* Outside every scope it ends here, after one lookup of a hash. */
	if (!task && !(config->scope_kinds & (EGS_SCOPE_BINARY | EGS_SCOPE_USER)) && !has_overflowed())
		return 0;
	file = read_pointer(bprm, OFF_linux_binprm_file);
	if (task) {
		scope = task->scope;
	} else {
		scope = scope_of_newcomer(config, current_task, file);
		if (scope < 0)
			return 0;
		untracked = govern(pid, scope, 0, 0);
	}

	decision = &scratch->decision;
	__builtin_memset(decision, 0, sizeof(*decision));
	decision->reason = EGS_GATE_MISCONFIGURED;
	scratch->facts.unreadable = read_facts(&scratch->facts, current_task, file) != 0;
	if (scratch->facts.unreadable)
		count_failure(EGS_FAIL_STATE_READ);
	read_argv(&scratch->facts, &scratch->argv);
	scratch->facts.environment = judge_environment(&scratch->facts, scratch->string);
	mode = scope_mode(scope);
	if (mode != EGS_MODE_UNUSED)
		decide(scratch, config, scope);
	if (untracked && decision->reason == EGS_AUTHORIZED)
		decision->reason = EGS_TASKS_FULL;

	event = reserve_event(&scratch->facts, &scratch->argv);
	if (!event)
		refuse_unrecorded(decision);
	verdict = decision->reason == EGS_AUTHORIZED ? EGS_ALLOW : EGS_KILL;
	enforced = mode != EGS_MODE_OBSERVE;
	count_decision(verdict, decision->reason, enforced);
	if (event) {
		describe(event, scratch, bprm);
		event->verdict = verdict;
		event->enforced = enforced;
		event->scope = scope;
		task = tasks.lookup(&pid);
		if (task) {
			event->parent_execution = task->execution;
			if (verdict == EGS_ALLOW || !enforced) {
				task->execution = new_execution(scratch->facts.now);
				task->flags = 0;
				event->execution = task->execution;
			}
		}
	}
	if (verdict != EGS_ALLOW && enforced) {
		int error = bpf_send_signal(EGS_SIGKILL);

		if (error)
			count_failure(EGS_FAIL_KILL);
		if (event)
			event->kill_error = error;
	}
	if (event)
		events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

/* ---- the scope follows the process ------------------------------------------------------------ */

/* The child of a process that is not governed may be born into a scope, and may bear an old number. */
static __always_inline int fork_outside(u64 parent, u64 child, u32 forker)
{
	u32 zero = 0, tgid = 0;
	struct egs_config *config = gate_configs.lookup(&zero);
	int scope = -1;
	int marked;

	if (read_field(&tgid, sizeof(tgid), child, OFF_task_struct_tgid)) {
		count_failure(EGS_FAIL_STATE_READ);
		return 0;
	}
	if (!config || tgid == forker)
		return 0; /* a thread */
	marked = tasks.lookup(&tgid) != 0;
	/* CLONE_INTO_CGROUP: born into a scope. Else parent and child share their css_set. */
	if ((config->scope_kinds & EGS_SCOPE_CGROUP) &&
	    (marked || has_overflowed() ||
	     read_pointer(child, OFF_task_struct_cgroups) != read_pointer(parent, OFF_task_struct_cgroups)))
		scope = scope_of_cgroup(cgroup_of(child));
	if (scope >= 0)
		govern_newborn(tgid, scope, 0);
	else if (marked)
		release(tgid); /* left behind by a process that ended while it was put under a scope */
	return 0;
}

int gate_fork(struct bpf_raw_tracepoint_args *ctx)
{
	u64 parent = ctx->args[0];
	u64 child = ctx->args[1];
	u32 zero = 0;
	u32 forker = bpf_get_current_pid_tgid() >> 32;
	struct egs_task *task = tasks.lookup(&forker);
	u32 pid = 0, tgid = 0;
	u64 *count;

	if (!task)
		return fork_outside(parent, child, forker);
	if (read_field(&pid, sizeof(pid), child, OFF_task_struct_pid) ||
	    read_field(&tgid, sizeof(tgid), child, OFF_task_struct_tgid)) {
		count_failure(EGS_FAIL_STATE_READ);
		bpf_send_signal(EGS_SIGKILL); /* a child that cannot be tracked: its parent makes no more */
		return 0;
	}
	if (pid != tgid)
		return 0; /* a thread: tracked with its process */
	govern_newborn(tgid, task->scope, task->execution);
	count = task_counts.lookup(&zero);
	if (!count || *count >= EGS_TASKS_SOFT) {
		count_failure(EGS_FAIL_FORK_REFUSED);
		bpf_send_signal(EGS_SIGKILL);
	}
	return 0;
}

int gate_attach(struct bpf_raw_tracepoint_args *ctx)
{
	u64 cgroup = ctx->args[0];
	u64 moved = ctx->args[2];
	u32 tgid = 0;
	int scope;

	if (!on_default_hierarchy(cgroup))
		return 0;
	scope = scope_of_cgroup(cgroup);
	if (scope < 0)
		return 0;
	if (read_field(&tgid, sizeof(tgid), moved, OFF_task_struct_tgid))
		count_failure(EGS_FAIL_STATE_READ);
	else
		govern(tgid, scope, 0, 0);
	return 0;
}

int gate_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
	u64 cgroup = ctx->args[0];
	struct egs_cgroup_path path = {};
	u64 id = 0;
	u32 *scope;

	if (!on_default_hierarchy(cgroup))
		return 0;
	if (bpf_probe_read_kernel_str(path.path, sizeof(path.path), (void *)ctx->args[1]) < 0)
		return 0;
	scope = scope_paths.lookup(&path);
	if (!scope)
		return 0;
	if (read_field(&id, sizeof(id), read_pointer(cgroup, OFF_cgroup_kn), OFF_kernfs_node_id) ||
	    scope_cgroups.update(&id, scope))
		count_failure(EGS_FAIL_CGROUP_INSERT);
	return 0;
}

int gate_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
	u64 cgroup = ctx->args[0];
	u64 id = 0;

	if (!on_default_hierarchy(cgroup))
		return 0;
	if (!read_field(&id, sizeof(id), read_pointer(cgroup, OFF_cgroup_kn), OFF_kernfs_node_id))
		scope_cgroups.delete(&id);
	return 0;
}

/* ---- outcomes --------------------------------------------------------------------------------- */

/* wait(2)'s status of a process whose last thread is `task`. */
static __always_inline u32 wait_status(u64 task, u64 signal)
{
	u32 flags = 0;
	int status = 0;

	read_field(&flags, sizeof(flags), signal, OFF_signal_struct_flags);
	if (flags & EGS_SIGNAL_GROUP_EXIT)
		read_field(&status, sizeof(status), signal, OFF_signal_struct_group_exit_code);
	else
		read_field(&status, sizeof(status), task, OFF_task_struct_exit_code);
	return status;
}

int gate_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 leaving = ctx->args[0];
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct egs_task *task = tasks.lookup(&pid);
	struct egs_task last;
	struct egs_exit_event *event;
	u64 signal;
	int live = 0;

	if (!task)
		return 0;
	signal = read_pointer(leaving, OFF_task_struct_signal);
	if (read_field(&live, sizeof(live), signal, OFF_signal_struct_live))
		count_failure(EGS_FAIL_STATE_READ);
	if (live != 0)
		return 0; /* other threads go on */
	last = *task;
	armed_grants.delete(&pid);
	if (release(pid))
		return 0; /* two last threads raced here: the other one reports */
	if (!last.execution || (last.flags & EGS_TASK_INHERITED))
		return 0;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		count_failure(EGS_FAIL_EXIT_EVENT);
		return 0;
	}
	event->type = EGS_EVENT_EXIT;
	event->scope = last.scope;
	event->time = bpf_ktime_get_boot_ns();
	event->execution = last.execution;
	event->pid = pid;
	event->status = wait_status(leaving, signal);
	events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

/* ---- measuring -------------------------------------------------------------------------------- */

/* args[0]: a descriptor of the caller's; args[1]: a nonce that comes back with the answer. */
int read_file(struct bpf_raw_tracepoint_args *ctx)
{
	u64 descriptor = ctx->args[0];
	u64 nonce = ctx->args[1];
	u32 zero = 0;
	struct egs_reading *reading = readings.lookup(&zero);
	u64 table, file, dentry, folder;
	unsigned long folder_inode = 0;
	u32 limit = 0;

	if (!reading)
		return 0;
	reading->nonce = nonce;
	reading->found = 0;
	reading->failed = 0;
	table = read_pointer(read_pointer(bpf_get_current_task(), OFF_task_struct_files), OFF_files_struct_fdt);
	if (read_field(&limit, sizeof(limit), table, OFF_fdtable_max_fds) || descriptor >= limit)
		return 0;
	file = read_pointer(read_pointer(table, OFF_fdtable_fd) + descriptor * sizeof(u64), 0);
	if (!file)
		return 0;
	reading->failed = read_file_id(&reading->file, file) != 0;
	dentry = read_pointer(file, OFF_file_f_path + OFF_path_dentry);
	folder = read_pointer(read_pointer(dentry, OFF_dentry_d_parent), OFF_dentry_d_inode);
	read_field(&folder_inode, sizeof(folder_inode), folder, OFF_inode_i_ino);
	reading->folder_inode = folder_inode;
	__builtin_memset(reading->name, 0, sizeof(reading->name));
	bpf_probe_read_kernel_str(reading->name, sizeof(reading->name),
				  (void *)read_pointer(dentry, OFF_dentry_d_name + OFF_qstr_name));
	reading->found = 1;
	return 0;
}

/*
 * args[0]: a process id; args[1], low half: the scope slot that governs it from now on, or -1 to release it; high
 * half: 0 when it is in none yet, else 1 plus the slot that it must be in now.
 */
int set_task(struct bpf_raw_tracepoint_args *ctx)
{
	u32 pid = ctx->args[0];
	u32 scope = ctx->args[1];
	u32 from = ctx->args[1] >> 32;
	struct egs_task *task;

	if (!from)
		return govern(pid, scope, 0, 0);
	task = tasks.lookup(&pid);
	if (!task || task->scope != from - 1)
		return 0;
	if (scope == (u32)-1)
		return release(pid);
	task->scope = scope; /* at no moment in none */
	return 0;
}
