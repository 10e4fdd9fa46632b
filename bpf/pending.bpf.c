// SPDX-License-Identifier: GPL-2.0-only
/*
 * An exec under way, on the tier `lsm`: what its hook found, kept for the hooks that follow in the same exec. By the
 * task's address, which stays while a thread that executes takes its leader's number. Gone when the exec succeeded,
 * was refused, or its thread ended; one that failed on its own is overwritten by the thread's next.
 */
#ifdef EGS_LSM

struct pending {
	struct exec_facts facts;
	struct decision decision;
	s32 scope;
	u32 exec_number; /* before it */
};
BPF_HASH(pending_execs, u64, struct pending, EGS_PENDING_EXECS);

static __always_inline int pending_scope(u64 task)
{
	struct pending *pending = pending_execs.lookup(&task);

	return pending ? pending->scope : -1;
}

/* What the earlier hook saw and the tracepoint cannot: the script, and the kernel's digests. */
static __always_inline void recall_pending(struct exec_facts *facts, u64 task)
{
	struct pending *pending = pending_execs.lookup(&task);

	facts->script_seen = 0;
	facts->digests = 0;
	facts->recalled = 0;
	if (!pending)
		return;
	facts->recalled = 1;
	facts->script_seen = pending->facts.script_seen;
	facts->digests = pending->facts.digests;
	facts->script = pending->facts.script;
	__builtin_memcpy(facts->digest, pending->facts.digest, EGS_DIGEST);
	__builtin_memcpy(facts->script_digest, pending->facts.script_digest, EGS_DIGEST);
}

static __always_inline void forget_pending(u64 task)
{
	pending_execs.delete(&task);
}

/* The scope of a process that came into it by an exec that the tracepoint was to decide, and did not; else -1. */
static __always_inline int scope_of_skipped(u64 task, u32 number)
{
	struct pending *pending = pending_execs.lookup(&task);

	return pending && pending->exec_number != number ? pending->scope : -1;
}

/* A script that the earlier hook did not see. */
static __always_inline int script_unseen(struct exec_facts *facts, u64 bprm)
{
	return !facts->script_seen &&
	       read_pointer(bprm, OFF_linux_binprm_interp) != read_pointer(bprm, OFF_linux_binprm_filename);
}

#else /* this tier sees interpreters alone: their arguments are bound */

static __always_inline int pending_scope(u64 task)
{
	return -1;
}

static __always_inline void recall_pending(struct exec_facts *facts, u64 task)
{
	facts->script_seen = 0;
	facts->digests = 0;
	facts->recalled = 1;
}

static __always_inline void forget_pending(u64 task)
{
}

static __always_inline int scope_of_skipped(u64 task, u32 number)
{
	return -1;
}

static __always_inline int script_unseen(struct exec_facts *facts, u64 bprm)
{
	return 0;
}

#endif
