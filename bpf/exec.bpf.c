// SPDX-License-Identifier: GPL-2.0-only
/* gate_exec: the decision at the tracepoint, its event, and the kill. guard_exec: the same where that was skipped. */

static __always_inline void describe(struct egs_exec_event *event, struct exec_facts *facts,
				     struct decision *decision)
{
	event->type = EGS_EVENT_EXEC;
	event->time = facts->now;
	event->cgroup_id = facts->cgroup_id;
	event->start_ticks = facts->start_ticks;
	event->file = facts->file;
	if (facts->script_seen)
		event->script = facts->script;
	else
		__builtin_memset(&event->script, 0, sizeof(event->script));
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
}

static __always_inline void name_program(struct egs_exec_event *event, u64 bprm)
{
	u64 filename = read_pointer(bprm, OFF_linux_binprm_filename);

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

/* The whole decision: what every hook asks, then what only the new image can answer. */
static __always_inline void judge(struct scratch *scratch, struct egs_config *config, u32 scope, u64 bprm,
				  const int late)
{
	decide(&scratch->decision, &scratch->facts, config, scope, 0);
	if (!late && scratch->decision.reason == EGS_AUTHORIZED && script_unseen(&scratch->facts, bprm))
		scratch->decision.reason = EGS_SCRIPT_UNAUTHORIZED;
	settle(scratch);
}

static __always_inline u32 lasting_flags(struct decision *decision)
{
	return (decision->flags & EGS_REFUSE_ANONYMOUS_CODE ? EGS_TASK_REFUSE_ANONYMOUS_CODE : 0) |
	       (decision->flags & EGS_OWN_CHILDREN ? EGS_TASK_OWN_CHILDREN : 0);
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

/*
 * An exec of a process in this scope: decided, reported, and ended unless it is permitted. `late`: by guard_exec, where
 * bprm is gone.
 */
static __always_inline void settle_exec(struct scratch *scratch, struct egs_config *config, u64 file, u64 bprm,
					u32 scope, int untracked, const int late)
{
	u64 current_task = bpf_get_current_task();
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct decision *decision = &scratch->decision;
	struct exec_facts *facts = &scratch->facts;
	struct egs_exec_event *event;
	struct egs_task *task;
	u32 verdict, mode, enforced;

	__builtin_memset(decision, 0, sizeof(*decision));
	decision->reason = EGS_GATE_MISCONFIGURED;
	facts->unreadable = read_task_facts(facts, current_task, file) != 0;
	facts->unreadable |= read_image_facts(facts, current_task) != 0;
	recall_pending(facts, current_task);
	if (late && !forget(facts->recalled))
		facts->unreadable = 1; /* without bprm, nobody knows whether there is a script */
	if (facts->unreadable)
		count_failure(EGS_FAIL_STATE_READ);
	read_argv(facts, &scratch->argv);
	facts->environment = judge_environment(facts, scratch->string);
	mode = scope_mode(scope);
	if (mode != EGS_MODE_UNUSED)
		judge(scratch, config, scope, bprm, late);
	if (untracked && decision->reason == EGS_AUTHORIZED)
		decision->reason = EGS_TASKS_FULL;

	event = reserve_event(facts, &scratch->argv);
	if (!event)
		refuse_unrecorded(decision);
	verdict = EGS_ALLOW;
	if (decision->reason != EGS_AUTHORIZED)
		verdict = event && !untracked && !late ? refusal(decision, facts, scope, bprm) : EGS_KILL;
	enforced = mode != EGS_MODE_OBSERVE;
	count_decision(verdict, decision->reason, enforced);
	task = tasks.lookup(&pid);
	if (event) {
		describe(event, facts, decision);
		if (!late)
			name_program(event, bprm);
		else if (bpf_probe_read_user_str(event->filename, sizeof(event->filename), (void *)facts->environment_end) < 0)
			event->filename[0] = 0; /* else there, by what the kernel tells the image (AT_EXECFN) */
		event->verdict = verdict;
		event->enforced = enforced;
		event->scope = scope;
		if (task) {
			event->parent_execution = task->execution;
			if (verdict != EGS_KILL || !enforced) {
				task->execution = new_execution(facts->now);
				task->artifact = verdict == EGS_HOLD ? 0 : artifact_key(decision->artifact_id);
				task->flags = verdict == EGS_HOLD ? EGS_TASK_HELD : lasting_flags(decision);
				task->code_events = 0;
				task->started = birth(current_task);
				event->execution = task->execution;
			}
		}
	}
	if (task && (verdict != EGS_KILL || !enforced))
		task->exec_number = exec_number(current_task);
	if (verdict == EGS_KILL && enforced) {
		int error = bpf_send_signal(EGS_SIGKILL);

		if (error)
			count_failure(EGS_FAIL_KILL);
		if (event)
			event->kill_error = error;
	}
	if (event)
		events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	forget_pending(current_task);
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
		scope = pending_scope(current_task);
		if (scope < 0)
			scope = scope_of_newcomer(config, current_task, file);
		if (scope < 0)
			return 0;
		untracked = govern(pid, scope);
	}
	settle_exec(scratch, config, file, bprm, scope, untracked, 0);
	return 0;
}

#ifdef EGS_CAN_SKIP
/*
 * From Linux 7.0 on gate_exec can be preempted, and then the kernel skips it for whoever executes on the same CPU
 * meanwhile. Every exec comes by here, on its way back to user space and with interrupts off, where nothing is skipped:
 * the floating point registers were thrown away (hold.bpf.c). One that was not decided is decided here. What could not be read now,
 * as no page fault is served here, refuses it; and nobody is held.
 */
int guard_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 current_task = bpf_get_current_task();
	u32 zero = 0, second = 1;
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	struct egs_task *task = tasks.lookup(&pid);
	u32 number = exec_number(current_task);
	int scope = task ? (int)task->scope : scope_of_skipped(current_task, number);
	struct egs_config *config;
	struct scratch *scratch;
	u64 file;

	if (scope < 0 || (task && task->exec_number == number))
		return 0;
	if (task && !task->exec_number) {
		task->exec_number = number; /* governed by user space, which cannot tell it */
		return 0;
	}
	count_failure(EGS_FAIL_EXEC_SKIPPED);
	config = gate_configs.lookup(&zero);
	scratch = scratches.lookup(&second); /* the first one is that of whom the kernel preempted */
	if (!config || !scratch)
		return 0;
	file = read_pointer(read_pointer(current_task, OFF_task_struct_mm), OFF_mm_struct_exe_file);
	settle_exec(scratch, config, file, 0, scope, task ? 0 : govern(pid, scope), 1);
	return 0;
}
#endif
