// SPDX-License-Identifier: GPL-2.0-only
/*
 * The tier `lsm`: an exec without a grant fails in its caller, and so does code that no artifact names.
 *
 * Hook map
 *   check_exec      lsm/bprm_check_security  once for each file that an exec goes through, the script first and the
 *                                            interpreter last. -EPERM: execve(2) fails, nothing was replaced. What
 *                                            only the new image has (arguments, environment, effective user) is
 *                                            judged by gate_exec, which stays as the second line. Sleepable where
 *                                            the kernel hashes the file for it (EGS_IMA).
 *   check_mapping   lsm/mmap_file            executable mappings, those of the exec itself included.
 *   check_protection lsm/file_mprotect       memory that is made executable afterwards.
 *   note_writer     lsm/file_open            a measured file is opened for writing: nothing measured of it counts
 *                                            until it is measured again.
 *
 * These hooks can be preempted, so nothing here is per CPU: what an exec needs lies in its own entry of pending_execs.
 * Before Linux 6.2 the kernel skips a program that another task is inside of on the same CPU (271de525e1d7), so there
 * none of them may sleep.
 */
#ifdef EGS_LSM

#define EGS_EPERM 1
#define EGS_PROT_WRITE 2
#define EGS_PROT_EXEC 4
#define EGS_FMODE_WRITE 2
#define EGS_SHEBANG 0x2123 /* "#!" */
#define EGS_IMA_SHA256 4 /* enum hash_algo */
#define EGS_WRITABLE_BY_OTHERS 0022

BPF_ARRAY(blank_pendings, struct pending, 1);

/* ---- exec ------------------------------------------------------------------------------------- */

/* An exec begins: whatever this thread left behind is gone. */
static __always_inline struct pending *begin_pending(u64 task)
{
	u32 zero = 0;
	struct pending *blank = blank_pendings.lookup(&zero);

	if (!blank || pending_execs.update(&task, blank))
		return 0;
	return pending_execs.lookup(&task);
}

#ifdef EGS_IMA
/* The kernel's own SHA-256 of the file, taken now. The pointer has to be one that the verifier knows the type of. */
static __always_inline int take_digest(u8 *digest, u64 *ctx)
{
	u64 bprm = ctx[0];
	u64 file;

	asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(file) : "r"(bprm), "i"(OFF_linux_binprm_file));
	if (bpf_ima_file_hash((void *)file, digest, EGS_DIGEST) == EGS_IMA_SHA256)
		return 0;
	count_failure(EGS_FAIL_DIGEST);
	return -1;
}
#else
static __always_inline int take_digest(u8 *digest, u64 *ctx)
{
	return 0;
}
#endif

/* The file that the exec is at is a script: it is named by the artifact of its interpreter, or nobody runs it. */
static __always_inline u32 note_script(struct pending *pending, u64 *ctx)
{
	if (pending->facts.script_seen)
		return EGS_SCRIPT_UNAUTHORIZED; /* the interpreter of a script is a script */
	if (pending->facts.unreadable)
		return EGS_STATE_UNREADABLE;
	pending->facts.script = pending->facts.file;
	if (take_digest(pending->facts.script_digest, ctx))
		return EGS_DIGEST_DIFFERS;
	pending->facts.script_seen = 1;
	return EGS_AUTHORIZED;
}

static __always_inline u32 judge_program(struct pending *pending, struct egs_config *config, u64 *ctx)
{
	struct decision *decision = &pending->decision;

	__builtin_memset(decision, 0, sizeof(*decision));
	decide(decision, &pending->facts, config, pending->scope, 1);
#ifdef EGS_IMA
	/* Last, as it reads the whole file. */
	if (decision->reason == EGS_AUTHORIZED) {
		pending->facts.digests = 1;
		if (take_digest(pending->facts.digest, ctx) || !same_digest(decision->digest, pending->facts.digest))
			decision->reason = EGS_DIGEST_DIFFERS;
	}
#endif
	return decision->reason;
}

static __always_inline int refuse_exec(struct pending *pending, u64 task, u64 bprm, u32 reason)
{
	struct egs_exec_event *event = events.ringbuf_reserve(sizeof(struct egs_exec_event));
	u32 pid = pending->facts.pid;
	struct egs_task *governed;

	pending->decision.reason = reason;
	count_decision(EGS_DENY, reason, 1);
	if (event) {
		describe(event, &pending->facts, &pending->decision);
		name_program(event, bprm);
		event->argv_length = 0;
		event->argv_copied = 0;
		event->verdict = EGS_DENY;
		event->enforced = 1;
		event->scope = pending->scope;
		governed = tasks.lookup(&pid);
		if (governed)
			event->parent_execution = governed->execution;
		events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	} else {
		count_failure(EGS_FAIL_EVENT); /* refused all the same */
	}
	forget_pending(task);
	return -EGS_EPERM;
}

/* By which scope an exec is judged; a script may be in none, and its interpreter in one. */
static __always_inline int scope_of_exec(struct egs_config *config, struct egs_task *governed,
					 struct pending *pending, u64 file)
{
	if (governed)
		return governed->scope;
	if (pending && pending->scope >= 0)
		return pending->scope;
	return scope_of_newcomer(config, bpf_get_current_task(), file);
}

int check_exec(u64 *ctx)
{
	u64 bprm = ctx[0];
	u64 task = bpf_get_current_task();
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u32 zero = 0, reason, mode;
	struct egs_config *config = gate_configs.lookup(&zero);
	struct egs_task *governed = tasks.lookup(&pid);
	struct pending *pending = 0;
	u64 file = read_pointer(bprm, OFF_linux_binprm_file);
	u16 head = 0;
	int scope, unread;

	if (!config) /* an array of one: cannot miss */
		return 0;
	if (!governed && !(config->scope_kinds & (EGS_SCOPE_BINARY | EGS_SCOPE_USER)) && !has_overflowed())
		return 0;
	/* The kernel gives an exec another name for its interpreter once it has found one: until then it begins. */
	if (read_pointer(bprm, OFF_linux_binprm_interp) != read_pointer(bprm, OFF_linux_binprm_filename))
		pending = pending_execs.lookup(&task);
	unread = read_field(&head, sizeof(head), bprm, OFF_linux_binprm_buf);
	scope = scope_of_exec(config, governed, pending, file);
	if (scope < 0 && head != EGS_SHEBANG) {
		forget_pending(task);
		return 0;
	}
	if (!pending)
		pending = begin_pending(task);
	mode = scope < 0 ? EGS_MODE_OBSERVE : scope_mode(scope);
	if (!pending) {
		count_failure(EGS_FAIL_PENDING);
		return mode == EGS_MODE_OBSERVE ? 0 : -EGS_EPERM;
	}
	pending->scope = scope;
	pending->exec_number = exec_number(task);
	pending->facts.unreadable = read_task_facts(&pending->facts, task, file) != 0;
	if (pending->facts.unreadable)
		count_failure(EGS_FAIL_STATE_READ);
	if (unread)
		reason = EGS_STATE_UNREADABLE;
	else if (head == EGS_SHEBANG)
		reason = note_script(pending, ctx);
	else if (mode == EGS_MODE_UNUSED)
		reason = EGS_GATE_MISCONFIGURED;
	else
		reason = judge_program(pending, config, ctx);
	if (reason == EGS_AUTHORIZED || mode == EGS_MODE_OBSERVE || may_hold(scope, &pending->decision))
		return 0;
	return refuse_exec(pending, task, bprm, reason);
}

/* ---- code ------------------------------------------------------------------------------------- */

/* Whether a folder above the file is a trusted library root, and nobody but root can change the file. */
static __always_inline int is_trusted_library(u64 file, struct egs_file_id *id)
{
	u64 inode = read_pointer(file, OFF_file_f_inode);
	u64 dentry = read_pointer(file, OFF_file_f_path + OFF_path_dentry);
	struct egs_file_key key = { .device = id->device };
	u32 owner = 1;
	u16 mode = EGS_WRITABLE_BY_OTHERS;

	if (read_field(&owner, sizeof(owner), inode, OFF_inode_i_uid) ||
	    read_field(&mode, sizeof(mode), inode, OFF_inode_i_mode) || owner || (mode & EGS_WRITABLE_BY_OTHERS))
		return 0;
	for (u32 depth = 0; depth < EGS_FOLDER_DEPTH; depth++) {
		u64 parent = read_pointer(dentry, OFF_dentry_d_parent);
		unsigned long number = 0;

		if (!parent || parent == dentry)
			break;
		dentry = parent;
		if (read_field(&number, sizeof(number), read_pointer(dentry, OFF_dentry_d_inode), OFF_inode_i_ino))
			break;
		key.inode = number;
		if (library_folders.lookup(&key))
			return 1;
	}
	return 0;
}

/* Who wants to run code, and under which artifact. */
struct runner {
	struct egs_task *task;
	struct pending *pending;
	u64 artifact;
	u32 flags;
	u32 scope;
};

/* False when the task runs under no artifact: it is not governed, or has executed nothing since it is. */
static __always_inline int find_runner(struct runner *runner)
{
	u64 task = bpf_get_current_task();
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	runner->task = tasks.lookup(&pid);
	runner->pending = pending_execs.lookup(&task);
	if (runner->pending && runner->pending->decision.kind) {
		runner->artifact = artifact_key(runner->pending->decision.artifact_id);
		runner->flags = lasting_flags(&runner->pending->decision);
		runner->scope = runner->pending->scope;
	} else if (runner->task) {
		runner->artifact = runner->task->artifact;
		runner->flags = runner->task->flags;
		runner->scope = runner->task->scope;
	} else {
		runner->artifact = 0;
	}
	return runner->artifact != 0;
}

static __always_inline u32 judge_file(struct runner *runner, u64 file, struct egs_file_id *id)
{
	struct egs_subject_key key = { .artifact = runner->artifact };
	struct egs_subject *subject;

	if (read_file_id(id, file)) {
		count_failure(EGS_FAIL_STATE_READ);
		return EGS_STATE_UNREADABLE;
	}
	if (runner->pending && same_file(id, &runner->pending->facts.file))
		return EGS_AUTHORIZED; /* the program itself, of which the decision was */
	key.inode = id->inode;
	key.device = id->device;
	subject = subjects.lookup(&key);
	if (subject && !same_file(&subject->file, id))
		return EGS_FILE_CHANGED;
	if (subject)
		return opened_since(last_opened(id), subject->measured) ? EGS_FILE_OPENED : EGS_AUTHORIZED;
	return is_trusted_library(file, id) ? EGS_AUTHORIZED : EGS_CODE_UNTRUSTED;
}

static __always_inline int refuse_code(struct runner *runner, u64 file, struct egs_file_id *id, u32 reason)
{
	int enforced = scope_mode(runner->scope) != EGS_MODE_OBSERVE;
	struct egs_code_event *event;
	u64 dentry;

	count_decision(EGS_DENY, reason, enforced);
	if (runner->task && runner->task->code_events < EGS_CODE_EVENTS) {
		__sync_fetch_and_add(&runner->task->code_events, 1);
		event = events.ringbuf_reserve(sizeof(*event));
		if (event) {
			dentry = read_pointer(file, OFF_file_f_path + OFF_path_dentry);
			event->type = EGS_EVENT_CODE;
			event->scope = runner->scope;
			event->time = bpf_ktime_get_boot_ns();
			event->execution = runner->task->execution;
			event->file = *id;
			event->reason = reason;
			event->enforced = enforced;
			event->pid = bpf_get_current_pid_tgid() >> 32;
			event->pad = 0;
			__builtin_memset(event->name, 0, sizeof(event->name));
			bpf_probe_read_kernel_str(event->name, sizeof(event->name),
						  (void *)read_pointer(dentry, OFF_dentry_d_name + OFF_qstr_name));
			events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
		} else {
			count_failure(EGS_FAIL_CODE_EVENT); /* refused all the same */
		}
	}
	return enforced ? -EGS_EPERM : 0;
}

/* `anonymous`: what is executed is, or can become, other than what the file has. */
static __always_inline int judge_code(u64 file, int anonymous)
{
	struct runner runner = {};
	struct egs_file_id id = {};
	u32 reason = EGS_AUTHORIZED;

	if (!find_runner(&runner))
		return 0;
	if (file)
		reason = judge_file(&runner, file, &id);
	if (reason == EGS_AUTHORIZED && anonymous && (runner.flags & EGS_TASK_REFUSE_ANONYMOUS_CODE))
		reason = EGS_CODE_ANONYMOUS;
	return reason == EGS_AUTHORIZED ? 0 : refuse_code(&runner, file, &id, reason);
}

int check_mapping(u64 *ctx)
{
	u64 file = ctx[0];
	u64 protection = ctx[2];

	if (!(protection & EGS_PROT_EXEC))
		return 0;
	return judge_code(file, !file || (protection & EGS_PROT_WRITE));
}

int check_protection(u64 *ctx)
{
	u64 area = ctx[0];
	u64 protection = ctx[2];
	u64 file;

	if (!(protection & EGS_PROT_EXEC))
		return 0;
	file = read_pointer(area, OFF_vm_area_struct_vm_file);
	/* A private page that was written is no longer the file's (anon_vma: there may be one). */
	return judge_code(file, !file || (protection & EGS_PROT_WRITE) ||
				read_pointer(area, OFF_vm_area_struct_anon_vma));
}

/* ---- measured files --------------------------------------------------------------------------- */

int note_writer(u64 *ctx)
{
	u64 file = ctx[0];
	struct egs_file_key key = {};
	u64 inode, number = 0;
	u64 *opened;
	u32 mode = 0;

	read_field(&mode, sizeof(mode), file, OFF_file_f_mode);
	if (!(mode & EGS_FMODE_WRITE))
		return 0;
	inode = read_pointer(file, OFF_file_f_inode);
	if (read_field(&number, sizeof(number), inode, OFF_inode_i_ino) ||
	    read_field(&key.device, sizeof(key.device), read_pointer(inode, OFF_inode_i_sb), OFF_super_block_s_dev))
		return 0;
	key.inode = number;
	opened = measured_files.lookup(&key);
	if (opened)
		*opened = bpf_ktime_get_boot_ns();
	return 0;
}

#endif
