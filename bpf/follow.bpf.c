// SPDX-License-Identifier: GPL-2.0-only
/* The scope follows the process: born, moved, ended; and the outcome when it ends. */

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
		govern_newborn(tgid, scope, 0, child);
	else if (marked)
		release(tgid); /* left behind by a process that ended while it was put under a scope */
	return 0;
}

int gate_fork(struct bpf_raw_tracepoint_args *ctx)
{
	u64 parent = bpf_get_current_task();
	u64 child = ctx->args[0];
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
	govern_newborn(tgid, task->scope, task, child);
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
	struct egs_task *task;
	u32 tgid = 0;
	int scope;

	if (!on_default_hierarchy(cgroup))
		return 0;
	scope = scope_of_cgroup(cgroup);
	if (scope < 0)
		return 0;
	if (read_field(&tgid, sizeof(tgid), moved, OFF_task_struct_tgid)) {
		count_failure(EGS_FAIL_STATE_READ);
		return 0;
	}
	govern(tgid, scope);
	task = tasks.lookup(&tgid);
	if (task && !task->exec_number)
		task->exec_number = exec_number(moved);
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

	forget_pending(leaving);
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
