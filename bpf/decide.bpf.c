// SPDX-License-Identifier: GPL-2.0-only
/* The decision on one exec: what is known of it, against the grants. Every hook that decides calls decide(). */

/* What is true of the task and the file before the exec and after it. */
static __always_inline int read_task_facts(struct exec_facts *facts, u64 task, u64 file)
{
	u64 cred = read_pointer(task, OFF_task_struct_cred);
	u64 parent = read_pointer(task, OFF_task_struct_real_parent);
	u64 leader = read_pointer(task, OFF_task_struct_group_leader); /* who executes may be another thread */
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
	failed |= read_field(&start, sizeof(start), leader, OFF_task_struct_start_boottime);
	failed |= read_field(&atomic_flags, sizeof(atomic_flags), task, OFF_task_struct_atomic_flags);
	failed |= read_field(&facts->seccomp_mode, sizeof(u32), task,
			     OFF_task_struct_seccomp + OFF_seccomp_mode);
	failed |= read_field(&facts->seccomp_filters, sizeof(u32), task,
			     OFF_task_struct_seccomp + OFF_seccomp_filter_count);
	facts->start_ticks = start / EGS_TICK_NS;
	facts->no_new_privs = atomic_flags & EGS_PFA_NO_NEW_PRIVS;
	facts->opened = last_opened(&facts->file);
	return failed;
}

/* Where the new image has its arguments and its environment. */
static __always_inline int read_image_facts(struct exec_facts *facts, u64 task)
{
	u64 mm = read_pointer(task, OFF_task_struct_mm);
	u64 argv_end = 0;
	int failed = 0;

	failed |= read_field(&facts->argv_start, sizeof(u64), mm, OFF_mm_struct_arg_start);
	failed |= read_field(&argv_end, sizeof(u64), mm, OFF_mm_struct_arg_end);
	failed |= read_field(&facts->environment_start, sizeof(u64), mm, OFF_mm_struct_env_start);
	failed |= read_field(&facts->environment_end, sizeof(u64), mm, OFF_mm_struct_env_end);
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
		if (length < 0)
			return EGS_ENVIRONMENT_UNREADABLE;
		length += !length; /* Linux 6.1 does not count the NUL of an empty string */
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

/* Whether an artifact names the script that the kernel hands to the interpreter. */
static __always_inline u32 script_permitted(u8 *artifact_id, struct exec_facts *facts)
{
	struct egs_subject_key key = {
		.artifact = artifact_key(artifact_id),
		.inode = facts->script.inode,
		.device = facts->script.device,
	};
	struct egs_subject *subject = subjects.lookup(&key);

	if (!subject || !same_file(&subject->file, &facts->script))
		return EGS_SCRIPT_UNAUTHORIZED;
	if (opened_since(last_opened(&facts->script), subject->measured))
		return EGS_FILE_OPENED;
	if (facts->digests && !same_digest(subject->digest, facts->script_digest))
		return EGS_DIGEST_DIFFERS;
	return EGS_AUTHORIZED;
}

/*
 * One grant against one exec, in the order of docs/architecture.md. `early`: asked before the new image exists, so
 * without what only that has; the tracepoint asks again.
 */
static __always_inline u32 conditions_hold(struct egs_grant *grant, struct exec_facts *facts, u32 scope,
					   const int early)
{
	u32 flags = grant->flags;

	if (facts->own && facts->own != artifact_key(grant->artifact_id))
		return EGS_CHILD_REFUSED;
	if (grant->scope != scope)
		return EGS_SCOPE_MISMATCH;
	if (grant->file.inode != facts->file.inode || grant->file.device != facts->file.device)
		return EGS_SUBJECT_MISMATCH;
	if (!same_file(&grant->file, &facts->file))
		return EGS_FILE_CHANGED;
	if (opened_since(facts->opened, grant->measured))
		return EGS_FILE_OPENED;
	if (facts->now < grant->not_before)
		return EGS_NOT_YET_VALID;
	if (facts->now >= grant->not_after)
		return EGS_EXPIRED;
	/* Both: a set-user-ID program changes who it is, and the artifact did not say so. */
	if ((flags & EGS_BIND_UID) && (facts->uid != grant->uid || (!early && facts->euid != grant->uid)))
		return EGS_IDENTITY_MISMATCH;
	if ((flags & EGS_BIND_CGROUP) && facts->cgroup_id != grant->cgroup_id)
		return EGS_CGROUP_MISMATCH;
	if ((flags & EGS_NEED_NO_NEW_PRIVS) && !facts->no_new_privs)
		return EGS_NO_NEW_PRIVS_MISSING;
	if ((flags & EGS_NEED_SECCOMP) &&
	    (facts->seccomp_mode != 2 || facts->seccomp_filters != grant->seccomp_filters))
		return EGS_SECCOMP_MISSING;
	if (early)
		return facts->script_seen ? script_permitted(grant->artifact_id, facts) : EGS_AUTHORIZED;
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
static __always_inline u32 grant_permits(struct egs_grant *grant, struct exec_facts *facts, u32 scope,
					 const int early)
{
	u64 id = forget(grant->grant_id);
	u32 reason = conditions_hold(grant, facts, scope, early);

	return forget(grant->grant_id) == id ? reason : EGS_NO_GRANT;
}

static __always_inline void cite(struct decision *decision, struct egs_grant *grant, u32 kind, u32 reason)
{
	decision->reason = reason;
	decision->kind = kind;
	decision->grant_id = grant->grant_id;
	decision->flags = grant->flags;
	__builtin_memcpy(decision->artifact_id, grant->artifact_id, sizeof(grant->artifact_id));
	__builtin_memcpy(decision->digest, grant->digest, sizeof(grant->digest));
}

/* The artifact that says what a process may start, if one does. */
static __always_inline u64 own_children(u32 pid)
{
	struct egs_task *task = tasks.lookup(&pid);

	if (!task || !(task->flags & EGS_TASK_OWN_CHILDREN))
		return 0;
	return task->artifact ? task->artifact : ~0ULL; /* it cannot be 0; then nobody's child is executed */
}

/*
 * Grants for an artifact's children lie among those that stand, under a key that has the artifact in it. Other
 * artifacts can have the same key: conditions_hold() compares artifact and file.
 */
static __always_inline void consult_grants(struct decision *decision, struct exec_facts *facts, u32 scope,
					   const int early)
{
	u32 pid = facts->pid;
	u64 own = own_children(pid);
	u32 kind = own ? EGS_GRANT_CHILD : EGS_GRANT_STANDING;
	struct egs_standing_key key = {
		.inode = facts->file.inode ^ own,
		.device = facts->file.device,
		.scope = scope | (own ? EGS_CHILDREN_OF : 0),
	};
	struct egs_grant *armed = armed_grants.lookup(&pid);

	facts->own = own;
	decision->reason = own ? EGS_CHILD_REFUSED : EGS_NO_GRANT;
	if (armed && !own) {
		/* An armed task executes what it was armed for, or nothing: no falling back. */
		u32 reason = armed->start_ticks != facts->start_ticks ?
			EGS_IDENTITY_MISMATCH : grant_permits(armed, facts, scope, early);

		cite(decision, armed, EGS_GRANT_ARMED, reason);
		if (!early || reason != EGS_AUTHORIZED)
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
		reason = grant_permits(grant, facts, scope, early);
		if (reason == EGS_AUTHORIZED || reason >= decision->reason)
			cite(decision, grant, kind, reason);
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
	if (decision->reason == EGS_AUTHORIZED && scratch->facts.script_seen)
		decision->reason = script_permitted(decision->artifact_id, &scratch->facts);
	if (decision->reason == EGS_AUTHORIZED && scratch->facts.digests &&
	    !same_digest(decision->digest, scratch->facts.digest))
		decision->reason = EGS_DIGEST_DIFFERS;
	if (decision->reason == EGS_AUTHORIZED && (decision->flags & EGS_BIND_USES)) {
		decision->reason = take_use(decision->grant_id);
		decision->spent = decision->reason == EGS_AUTHORIZED;
	}
}

/*
 * The decision, in the order of docs/architecture.md; each uncertain path refuses. Both hooks come here, and what is
 * left at the tracepoint settle() does.
 */
static __always_inline void decide(struct decision *decision, struct exec_facts *facts, struct egs_config *config,
				   u32 scope, const int early)
{
	if (daemon_is_stale(config))
		decision->reason = EGS_DAEMON_STALE;
	else if (facts->unreadable)
		decision->reason = EGS_STATE_UNREADABLE;
	else
		consult_grants(decision, facts, scope, early);
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
