// SPDX-License-Identifier: GPL-2.0-only
/* Run by user space through BPF_PROG_TEST_RUN, never attached. */

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
		return govern(pid, scope);
	task = tasks.lookup(&pid);
	if (!task || task->scope != from - 1)
		return 0;
	if (scope == (u32)-1)
		return task->flags & EGS_TASK_STOPPED ? 0 : release(pid); /* what is stopped stays marked to its end */
	task->scope = scope; /* at no moment in none */
	return 0;
}
