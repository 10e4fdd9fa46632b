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
	if (task && !task->exec_number) {
		task->started = birth(read_pointer(moved, OFF_task_struct_group_leader));
		task->exec_number = exec_number(moved);
	}
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

/* What the scheduler has counted of threads that were released: of all of them, once the process was waited for. */
static __always_inline u64 released_cpu(u64 signal)
{
	u64 time = 0;

	read_field(&time, sizeof(time), signal, OFF_signal_struct_sum_sched_runtime);
	return time;
}

/* The same of a thread that was not released yet, without the slice that runs now. */
static __always_inline u64 thread_cpu(u64 task)
{
	u64 time = 0;

	read_field(&time, sizeof(time), task, OFF_task_struct_se + OFF_sched_entity_sum_exec_runtime);
	return time;
}

/* A process has ended, whose last thread was `task`: forget it, and report the outcome of an execution. */
static __always_inline int end_process(u32 pid, struct egs_task *tracked, u64 task, u64 signal, u64 cpu)
{
	struct egs_task last = *tracked;
	struct egs_ended_task ended = {};
	struct egs_exit_event *event;

	armed_grants.delete(&pid);
	if (release(pid))
		return 0; /* two last threads raced here: the other one reports */
	if (!last.execution)
		return 0;
	ended.execution = last.execution;
	ended.time = bpf_ktime_get_boot_ns();
	ended.scope = last.scope;
	ended_tasks.update(&pid, &ended); /* the kernel's messages of it may come later */
	if (last.flags & EGS_TASK_INHERITED)
		return 0;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		count_failure(EGS_FAIL_EXIT_EVENT);
		return 0;
	}
	event->type = EGS_EVENT_EXIT;
	event->scope = last.scope;
	event->time = ended.time;
	event->execution = last.execution;
	event->pid = pid;
	event->status = wait_status(task, signal);
	event->cpu = cpu;
	event->max_rss = 0;
	read_field(&event->max_rss, sizeof(event->max_rss), signal, OFF_signal_struct_maxrss);
	events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	return 0;
}

int gate_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 leaving = ctx->args[0];
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct egs_task *task = tasks.lookup(&pid);
	u64 leader = read_pointer(leaving, OFF_task_struct_group_leader);
	u64 signal, cpu;
	int live = 0;

	forget_pending(leaving);
	if (!task)
		return 0;
	signal = read_pointer(leaving, OFF_task_struct_signal);
	if (read_field(&live, sizeof(live), signal, OFF_signal_struct_live))
		count_failure(EGS_FAIL_STATE_READ);
	if (live != 0)
		return 0; /* other threads go on */
	cpu = released_cpu(signal) + thread_cpu(leaving);
	if (leader != leaving)
		cpu += thread_cpu(leader);
	return end_process(pid, task, leaving, signal, cpu);
}

/*
 * From Linux 7.0 on gate_exit can be preempted, and then the kernel skips it for whoever ends on the same CPU meanwhile.
 * Every process comes by here when it was waited for and the last reader of it is gone: in the kernel's callbacks, where
 * nothing is preempted. Its number may have another bearer by then.
 */
int guard_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 gone = ctx->args[0];
	struct egs_task *task;
	u64 signal;
	u32 pid = 0, tgid = 0;

	forget_pending(gone);
	if (read_field(&pid, sizeof(pid), gone, OFF_task_struct_pid) ||
	    read_field(&tgid, sizeof(tgid), gone, OFF_task_struct_tgid)) {
		count_failure(EGS_FAIL_STATE_READ);
		return 0;
	}
	if (pid != tgid)
		return 0; /* no leader, or not any more: a thread executed, and has its number */
	task = tasks.lookup(&tgid);
	if (!task || !task->started || task->started != birth(gone))
		return 0;
	signal = read_pointer(gone, OFF_task_struct_signal);
	return end_process(tgid, task, gone, signal, released_cpu(signal));
}
