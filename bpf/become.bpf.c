// SPDX-License-Identifier: GPL-2.0-only
/* Self-protection (protect.bpf.c): who becomes the daemon while the gate is sealed. */

#ifdef EGS_LSM

/* ---- becoming the daemon ------------------------------------------------------------------------- */

/* Once for each file of an exec, the interpreter last: before the kernel opens the loader, and anything runs. */
int see_program(u64 *ctx)
{
	u64 inode = read_pointer(read_pointer(ctx[0], OFF_linux_binprm_file), OFF_file_f_inode);
	struct egs_applicant applicant = { .stage = EGS_APPLICANT_EXECUTES };
	u32 zero = 0, pid = current_process();
	struct egs_daemon *daemon = daemons.lookup(&zero);
	unsigned long number = 0;
	u32 device = 0;

	if (!is_sealed() || !daemon || daemon->pid)
		return 0;
	read_field(&number, sizeof(number), inode, OFF_inode_i_ino);
	read_field(&device, sizeof(device), read_pointer(inode, OFF_inode_i_sb), OFF_super_block_s_dev);
	if (number != daemon->program_inode || device != daemon->program_device) {
		applicants.delete(&pid);
		return 0;
	}
	applicant.namespace = mount_namespace_of(bpf_get_current_task());
	applicants.update(&pid, &applicant); /* full: it is nobody, and has to start again */
	return 0;
}

int see_code(u64 *ctx)
{
	u64 file = ctx[0];
	u64 protection = ctx[2];
	u32 pid = current_process();
	struct egs_applicant *applicant;

	if (!file || !(protection & EGS_PROT_EXEC) || !is_sealed())
		return 0;
	applicant = applicants.lookup(&pid);
	if (applicant)
		watch_applicant(applicant, file);
	return 0;
}

static __always_inline int has_daemon_argv(struct egs_argv *argv)
{
	u32 zero = 0;
	struct egs_argv *registered = daemon_argvs.lookup(&zero);
	u64 differs = 0;

	if (!registered || argv->length != registered->length)
		return 0;
	for (u32 i = 0; i < EGS_ARGV_MAX / 8; i++) {
		u64 j = i;

		if (i * 8 >= forget(registered->length))
			break;
		asm volatile("%0 &= 0x1ff" : "+r"(j));
		differs |= argv->words[j] ^ registered->words[j];
	}
	return !differs;
}

static __always_inline int is_daemon_image(struct scratch *scratch, u64 task, u64 file)
{
	struct exec_facts *facts = &scratch->facts;
	u32 traced = 1;

	if (read_task_facts(facts, task, file) || read_image_facts(facts, task))
		return 0;
	if (read_field(&traced, sizeof(traced), task, OFF_task_struct_ptrace) || traced)
		return 0;
	if (facts->uid || facts->euid || facts->seccomp_mode || facts->argv_length > EGS_ARGV_MAX)
		return 0;
	read_argv(facts, &scratch->argv);
	return facts->argv_read && has_daemon_argv(&scratch->argv) &&
	       judge_environment(facts, scratch->string) == EGS_AUTHORIZED;
}

int see_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0, pid = current_process();
	struct egs_daemon *daemon = daemons.lookup(&zero);
	struct scratch *scratch = daemon_scratches.lookup(&zero);
	struct egs_applicant *applicant;

	if (!daemon || !scratch)
		return 0;
	if (daemon->pid == pid)
		daemon->pid = 0; /* it is another program now */
	if (!is_sealed())
		return 0;
	applicant = applicants.lookup(&pid);
	if (!applicant)
		return 0;
	if (applicant->stage == EGS_APPLICANT_EXECUTES &&
	    is_daemon_image(scratch, ctx->args[0], read_pointer(ctx->args[2], OFF_linux_binprm_file)))
		applicant->stage = EGS_APPLICANT_APPLIES;
	else
		applicants.delete(&pid);
	return 0;
}

int see_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 signal = read_pointer(ctx->args[0], OFF_task_struct_signal);
	u32 zero = 0, pid = current_process();
	struct egs_daemon *daemon = daemons.lookup(&zero);
	int live = 0;

	if (read_field(&live, sizeof(live), signal, OFF_signal_struct_live) || live != 0)
		return 0; /* other threads go on */
	if (daemon && daemon->pid == pid)
		daemon->pid = 0;
	if (is_sealed())
		applicants.delete(&pid);
	return 0;
}

/*
 * The second look at its end. From Linux 7.0 on a tracepoint can be preempted (a46023d5616e), and then the kernel may
 * skip see_exit; it skips no hook of LSM there (since 6.2).
 */
int see_free(u64 *ctx)
{
	u64 task = ctx[0];
	u32 zero = 0, pid = 0, thread = 0;
	struct egs_daemon *daemon = daemons.lookup(&zero);
	u64 start = 0;

	if (!daemon || !daemon->pid)
		return 0;
	if (read_field(&pid, sizeof(pid), task, OFF_task_struct_tgid) || daemon->pid != pid)
		return 0;
	read_field(&thread, sizeof(thread), task, OFF_task_struct_pid);
	read_field(&start, sizeof(start), task, OFF_task_struct_start_boottime);
	if (thread == pid && daemon->start_ticks == start / EGS_TICK_NS)
		daemon->pid = 0;
	return 0;
}

/* args[0]: a descriptor of the caller's. What holds for its file, by the names that its own mounts do not change. */
int read_protection(struct bpf_raw_tracepoint_args *ctx)
{
	u64 descriptor = ctx->args[0];
	u64 table = read_pointer(read_pointer(bpf_get_current_task(), OFF_task_struct_files), OFF_files_struct_fdt);
	u32 limit = 0;
	u64 file;

	if (read_field(&limit, sizeof(limit), table, OFF_fdtable_max_fds) || descriptor >= limit)
		return 0;
	file = read_pointer(read_pointer(table, OFF_fdtable_fd) + descriptor * sizeof(u64), 0);
	return file ? protection_of(read_pointer(file, OFF_file_f_path + OFF_path_dentry)) : 0;
}

#endif
