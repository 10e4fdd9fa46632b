// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hold: in a scope that holds, an exec that lacks nothing but an authorization is marked and stopped (SIGSTOP) inside
 * of execve, and waits for the daemon's word. The daemon takes the mark away and continues it, or kills it.
 *
 * A stop is no enforcement: the owner may continue his process, a tracer may, a SIGCONT may come first. So two guards,
 * attached while a scope holds, kill whoever comes to user space with the mark:
 *
 *   guard_return  raw_tp/x86_fpu_regs_activated   execve() throws the floating point registers away, so the first way
 *                                                 back to user space loads them, after all signals were dealt with.
 *                                                 Whatever memory is there already: this comes first.
 *   guard_fault   raw_tp/page_fault_user          a fresh image faults in its first page. Not always: the kernel itself
 *                                                 may have, for the end of a data segment or the arguments on the
 *                                                 stack, and so has who reads /proc/PID/mem. The second line.
 *
 * On the tier `lsm` the signal is refused before that (continues_held, for keep_signal and keep_sigio): whoever sends it
 * gets EPERM, and what is held waits on. Signals of the kernel's own, as to an orphaned process group, and tracers
 * do not come by there.
 */

#define EGS_SIGCONT 18
#define EGS_SIGSTOP 19
#define EGS_REASON_BIT(reason) (1ULL << (reason))

/* Refusals that another artifact, or one more measurement, would cure. */
#define EGS_CURABLE                                                                                                    \
	(EGS_REASON_BIT(EGS_NO_GRANT) | EGS_REASON_BIT(EGS_FILE_CHANGED) | EGS_REASON_BIT(EGS_NOT_YET_VALID) |         \
	 EGS_REASON_BIT(EGS_EXPIRED) | EGS_REASON_BIT(EGS_IDENTITY_MISMATCH) | EGS_REASON_BIT(EGS_CGROUP_MISMATCH) |   \
	 EGS_REASON_BIT(EGS_USES_EXHAUSTED) | EGS_REASON_BIT(EGS_ARGV_MISMATCH) | EGS_REASON_BIT(EGS_FILE_OPENED) |     \
	 EGS_REASON_BIT(EGS_DIGEST_DIFFERS) | EGS_REASON_BIT(EGS_SCRIPT_UNAUTHORIZED))

static __always_inline int is_held(u32 tgid)
{
	struct egs_task *task = tasks.lookup(&tgid);

	return task && (task->flags & EGS_TASK_STOPPED);
}

/*
 * Whether an exec that is refused for this reason waits instead, as far as its scope and the reason say. Who was armed
 * never waits: it executes what it was armed for, or nothing; nor who may start certain children alone.
 */
static __always_inline int may_hold(u32 scope, struct decision *decision)
{
	struct egs_scope *slot = scopes.lookup(&scope);

	return slot && slot->mode == EGS_MODE_ENFORCE && slot->on_missing == EGS_MISSING_HOLD &&
	       decision->kind != EGS_GRANT_ARMED && decision->kind != EGS_GRANT_CHILD && decision->reason < 64 &&
	       (EGS_CURABLE & EGS_REASON_BIT(decision->reason & 63));
}

#ifdef EGS_LSM
/*
 * Whether a signal would let what is held go on. SIGCONT alone does, but for SIGKILL, which ends it: others wait until
 * it is continued. Nobody needs it while the mark is there: the daemon takes that away first.
 */
static __always_inline int continues_held(u64 task, u32 signal)
{
	u32 zero = 0, pid = 0;
	u64 *count = held_counts.lookup(&zero);

	if (signal != EGS_SIGCONT || (count && !*count))
		return 0;
	return read_field(&pid, sizeof(pid), task, OFF_task_struct_tgid) || is_held(pid);
}
#endif

/* Mark and stop the current process, which is tracked. Any other outcome is a reason to kill it. */
static __always_inline u32 hold(u32 pid)
{
	u32 zero = 0;
	u64 *count = held_counts.lookup(&zero);
	struct egs_task *task = tasks.lookup(&pid);

	if (!task || !count)
		return EGS_GATE_MISCONFIGURED;
	if (__sync_fetch_and_add(count, 1) >= EGS_HELD_MAX) {
		__sync_fetch_and_add(count, -1);
		return EGS_HOLDS_FULL;
	}
	task->flags |= EGS_TASK_HELD; /* its own process alone does that, in its exec */
	if (bpf_send_signal(EGS_SIGSTOP)) {
		end_stop(task, EGS_TASK_HELD);
		return EGS_GATE_MISCONFIGURED;
	}
	return EGS_AUTHORIZED;
}

/* What becomes of a refused exec whose event has its room: HOLD, or KILL with the reason that is nearest. */
static __always_inline u32 refusal(struct decision *decision, struct exec_facts *facts, u32 scope, u64 bprm)
{
	u32 reason = EGS_AUTHORIZED;

	if (!may_hold(scope, decision))
		return EGS_KILL;
	/* Nobody could say what it is that waits, or no authorization cures it. */
	if (!facts->argv_read)
		reason = EGS_ARGV_UNREADABLE;
	else if (facts->environment != EGS_AUTHORIZED)
		reason = facts->environment;
	else if (script_unseen(facts, bprm))
		reason = EGS_SCRIPT_UNAUTHORIZED;
	else
		reason = hold(facts->pid);
	if (reason == EGS_AUTHORIZED)
		return EGS_HOLD;
	decision->reason = reason;
	return EGS_KILL;
}

/* Somebody other than the daemon let it go. */
static __always_inline int guard(void)
{
	u32 zero = 0;
	u64 *count = held_counts.lookup(&zero);

	if (count && !*count)
		return 0;
	if (!is_held(bpf_get_current_pid_tgid() >> 32))
		return 0;
	count_failure(EGS_FAIL_HOLD_BROKEN);
	if (bpf_send_signal(EGS_SIGKILL))
		count_failure(EGS_FAIL_KILL);
	return 0;
}

int guard_return(struct bpf_raw_tracepoint_args *ctx)
{
	return guard();
}

int guard_fault(struct bpf_raw_tracepoint_args *ctx)
{
	return guard();
}

/*
 * Run by the daemon: what is held runs as soon as it is continued. args[0]: its process id; args[1]: its execution;
 * args[2]: the artifact that it runs under, the first 8 bytes of the id; args[3]: flags that it has from then on.
 * 1 when it was held as that execution.
 */
int release_hold(struct bpf_raw_tracepoint_args *ctx)
{
	u32 pid = ctx->args[0];
	struct egs_task *task = tasks.lookup(&pid);

	if (!task || !(task->flags & EGS_TASK_HELD) || task->execution != ctx->args[1])
		return 0;
	task->artifact = ctx->args[2];
	task->flags |= ctx->args[3] & EGS_TASK_LASTING;
	return end_stop(task, EGS_TASK_HELD);
}

/*
 * Run by the monitor, on a process of a tree that drifted. args[0]: its process id; args[1]: its execution; args[2]: what
 * becomes of it; args[3]: for EGS_RESTRAIN_QUARANTINE the key of an artifact that no grant has. 1 when it is so now.
 */
int restrain_task(struct bpf_raw_tracepoint_args *ctx)
{
	u32 pid = ctx->args[0], zero = 0;
	struct egs_task *task = tasks.lookup(&pid);
	u64 *count = held_counts.lookup(&zero);

	if (!task || !count || task->execution != ctx->args[1])
		return 0;
	if (ctx->args[2] == EGS_RESTRAIN_QUARANTINE) {
		/* It may start the children of an artifact that has none; so may what it forks. The key first: an exec reads both. */
		task->artifact = ctx->args[3];
		set_flag(task, EGS_TASK_OWN_CHILDREN);
	} else if (ctx->args[2] == EGS_RESTRAIN_SUSPEND) {
		if (!set_flag(task, EGS_TASK_SUSPENDED))
			__sync_fetch_and_add(count, 1);
	} else {
		end_stop(task, EGS_TASK_SUSPENDED);
	}
	return 1;
}
