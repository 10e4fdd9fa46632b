// SPDX-License-Identifier: GPL-2.0-only
/* Scopes: which one a cgroup, a program or a user belongs to, and the table of governed processes. */

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
static __always_inline int track(u32 pid, struct egs_task *task)
{
	u32 zero = 0, index = EGS_OVERFLOWED;
	u64 *count = task_counts.lookup(&zero);
	u64 *overflowed = task_counts.lookup(&index);
	int error = tasks.insert(&pid, task);

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

/* What a process has from its artifact, and its children from it. */
#define EGS_TASK_LASTING (EGS_TASK_REFUSE_ANONYMOUS_CODE | EGS_TASK_OWN_CHILDREN)

/* Flags that two CPUs change at once are changed together with the scope before them: BPF has 64-bit atomics. */
_Static_assert(__builtin_offsetof(struct egs_task, scope) % 8 == 0 &&
		       __builtin_offsetof(struct egs_task, flags) == __builtin_offsetof(struct egs_task, scope) + 4,
	       "scope and flags are one aligned word");

static __always_inline u64 clear_flag(struct egs_task *task, u32 flag)
{
	return __sync_fetch_and_and((u64 *)&task->scope, ~((u64)flag << 32)) >> 32 & flag;
}

static __always_inline u64 set_flag(struct egs_task *task, u32 flag)
{
	return __sync_fetch_and_or((u64 *)&task->scope, (u64)flag << 32) >> 32 & flag;
}

/* What may not come to user space while its process has one of them (hold.bpf.c). */
#define EGS_TASK_STOPPED (EGS_TASK_HELD | EGS_TASK_SUSPENDED)

/* Take the mark of a stopped process away, exactly once, however many want to; whether it was there. */
static __always_inline int end_stop(struct egs_task *task, u32 mark)
{
	u32 zero = 0;
	u64 *count = held_counts.lookup(&zero);

	if (!clear_flag(task, mark))
		return 0;
	if (count)
		__sync_fetch_and_add(count, -1);
	return 1;
}

/* How often a process has executed, as the kernel counts; never 0. */
static __always_inline u32 exec_number(u64 task)
{
	u64 number = 0;

	read_field(&number, sizeof(number), task, OFF_task_struct_self_exec_id);
	return (u32)number | 0x80000000;
}

/* When the process of this leading thread was born, which a thread that executes takes over with its number; 0: unknown. */
static __always_inline u64 birth(u64 leader)
{
	u64 time = 0;

	read_field(&time, sizeof(time), leader, OFF_task_struct_start_boottime);
	return time;
}

static __always_inline int govern(u32 pid, u32 scope)
{
	struct egs_task task = { .scope = scope };

	return track(pid, &task);
}

/*
 * A process that was just born, of a governed parent or of none: what the table has under its number is of one that
 * bore it before.
 */
static __always_inline void govern_newborn(u32 pid, u32 scope, struct egs_task *parent, u64 child)
{
	struct egs_task task = {
		.scope = scope,
		.flags = EGS_TASK_INHERITED,
		.started = birth(child),
		.exec_number = exec_number(child),
	};
	struct egs_task *stale = tasks.lookup(&pid);

	if (parent) {
		task.execution = parent->execution;
		task.artifact = parent->artifact;
		task.flags |= parent->flags & EGS_TASK_LASTING;
	}
	if (stale) {
		end_stop(stale, EGS_TASK_STOPPED);
		*stale = task;
	} else {
		track(pid, &task);
	}
}

static __always_inline int release(u32 pid)
{
	u32 zero = 0;
	u64 *count = task_counts.lookup(&zero);
	struct egs_task *task = tasks.lookup(&pid);
	int error;

	if (task)
		end_stop(task, EGS_TASK_STOPPED);
	error = tasks.delete(&pid);
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
