// SPDX-License-Identifier: GPL-2.0-only
/* Self-protection (protect.bpf.c): the files that are kept, and the daemon. */

#ifdef EGS_LSM

/* ---- files --------------------------------------------------------------------------------------- */

/* What holds for a folder entry: its own protection, and that of the folders above it. */
static __always_inline u32 protection_of(u64 dentry)
{
	struct egs_file_key key = {};
	u64 at = dentry;
	u32 found = 0;

	if (read_field(&key.device, sizeof(key.device), read_pointer(dentry, OFF_dentry_d_sb), OFF_super_block_s_dev))
		return 0;
	for (u32 depth = 0; depth < EGS_FOLDER_DEPTH; depth++) {
		unsigned long number = 0;
		u64 parent;
		u32 *flags;

		/* Nothing there yet: then what is above it counts. */
		if (!read_field(&number, sizeof(number), read_pointer(at, OFF_dentry_d_inode), OFF_inode_i_ino)) {
			key.inode = number;
			flags = protected_files.lookup(&key);
			if (flags)
				found |= at == dentry ? *flags : *flags & EGS_PROTECT_CONTENT;
		}
		if (found & EGS_PROTECT_CONTENT)
			break;
		parent = read_pointer(at, OFF_dentry_d_parent);
		if (!parent || parent == at)
			break;
		at = parent;
	}
	return found;
}

static __always_inline int keep_entry(u64 dentry, u32 what, u32 protection)
{
	if (!binds_current() || !(protection_of(dentry) & protection))
		return 0;
	return refuse_attempt(what, 0, dentry);
}

static __always_inline int is_measured(u64 dentry)
{
	struct egs_file_key key = {};
	unsigned long number = 0;

	if (read_field(&key.device, sizeof(key.device), read_pointer(dentry, OFF_dentry_d_sb), OFF_super_block_s_dev) ||
	    read_field(&number, sizeof(number), read_pointer(dentry, OFF_dentry_d_inode), OFF_inode_i_ino))
		return 0;
	key.inode = number;
	return measured_files.lookup(&key) != 0;
}

static __always_inline int keep_content(u64 dentry, u32 what)
{
	if (!binds_current())
		return 0;
	if (!is_measured(dentry) && !(protection_of(dentry) & EGS_PROTECT_CONTENT))
		return 0;
	return refuse_attempt(what, 0, dentry);
}

/* A file of a kernel file system whose content nobody can choose. */
static __always_inline int is_harmless(u64 dentry)
{
	struct egs_harmless_key key = {};
	unsigned long magic = 0;

	read_field(&magic, sizeof(magic), read_pointer(dentry, OFF_dentry_d_sb), OFF_super_block_s_magic);
	if (magic != EGS_PROC_MAGIC && magic != EGS_SYSFS_MAGIC && magic != EGS_CGROUP_MAGIC && magic != EGS_CGROUP2_MAGIC)
		return 0;
	bpf_probe_read_kernel_str(key.name, sizeof(key.name),
				  (void *)read_pointer(dentry, OFF_dentry_d_name + OFF_qstr_name));
	return harmless_names.lookup(&key) != 0;
}

/* What may become the daemon has only what is kept in its hands. Nothing is refused: it is somebody else then. */
static __always_inline void watch_applicant(struct egs_applicant *applicant, u64 file)
{
	u64 dentry = read_pointer(file, OFF_file_f_path + OFF_path_dentry);
	u16 mode = 0;

	if (applicant->stage == EGS_APPLICANT_TAINTED)
		return;
	read_field(&mode, sizeof(mode), read_pointer(file, OFF_file_f_inode), OFF_inode_i_mode);
	if ((mode & EGS_FILE_TYPE) == EGS_FOLDER)
		return; /* names are no code */
	if ((protection_of(dentry) & EGS_PROTECT_CONTENT) || is_harmless(dentry))
		return;
	refuse_attempt(EGS_ATTEMPT_BECOME, 0, dentry);
	applicant->stage = EGS_APPLICANT_TAINTED;
}

int keep_open(u64 *ctx)
{
	u64 file = ctx[0];
	u32 pid = current_process();
	struct egs_applicant *applicant;
	u32 mode = 0;

	if (!is_sealed())
		return 0;
	read_field(&mode, sizeof(mode), file, OFF_file_f_mode);
	if (mode & EGS_FMODE_WRITE)
		return keep_content(read_pointer(file, OFF_file_f_path + OFF_path_dentry), EGS_ATTEMPT_WRITE);
	applicant = applicants.lookup(&pid);
	if (applicant)
		watch_applicant(applicant, file);
	return 0;
}

/* inode_symlink, inode_mkdir and inode_mknod, too: each has the folder first and the entry then. */
int keep_create(u64 *ctx)
{
	return keep_entry(ctx[1], EGS_ATTEMPT_CREATE, EGS_PROTECT_CONTENT);
}

/* inode_rmdir, too */
int keep_unlink(u64 *ctx)
{
	return keep_entry(ctx[1], EGS_ATTEMPT_REMOVE, EGS_PROTECT_CONTENT | EGS_PROTECT_PLACE);
}

/* A second name is a way around those that are kept. */
int keep_link(u64 *ctx)
{
	u64 from = ctx[0];
	u64 to = ctx[2];

	if (!binds_current())
		return 0;
	if (!((protection_of(from) | protection_of(to)) & EGS_PROTECT_CONTENT))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_LINK, 0, from);
}

int keep_rename(u64 *ctx)
{
	u64 from = ctx[1];
	u64 to = ctx[3];

	if (!binds_current())
		return 0;
	if (!(protection_of(from) | protection_of(to)))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_RENAME, 0, from);
}

int keep_attributes(u64 *ctx)
{
	return keep_content(ctx[ARG_inode_setattr_dentry], EGS_ATTEMPT_ATTRIBUTES);
}

/* inode_removexattr, too */
int keep_setxattr(u64 *ctx)
{
	return keep_entry(ctx[1], EGS_ATTEMPT_ATTRIBUTES, EGS_PROTECT_CONTENT);
}

/* ---- the daemon ---------------------------------------------------------------------------------- */

/* The kernel's own signals do not come here. */
int keep_signal(u64 *ctx)
{
	u64 task = ctx[0];
	u32 signal = ctx[2];

	if (continues_held(task, signal))
		return -EGS_EPERM;
	if (!signal || !binds_current() || !is_protected_task(task) || is_shutdown())
		return 0;
	return refuse_attempt(EGS_ATTEMPT_SIGNAL, signal, 0);
}

/* F_SETOWN and F_SETSIG: any signal, when a descriptor is ready. */
int keep_sigio(u64 *ctx)
{
	u64 task = ctx[0];
	u32 signal = ctx[2];

	if (continues_held(task, signal))
		return -EGS_EPERM;
	/* What the daemon's own leases send, and nobody heeds (measure.py). */
	if (!is_sealed() || signal == EGS_SIGURG || !is_protected_task(task))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_SIGNAL, signal, 0);
}

int keep_trace(u64 *ctx)
{
	u64 task = ctx[0];
	u32 mode = ctx[1];

	if (!(mode & EGS_PTRACE_MODE_ATTACH) || !binds_current() || !is_protected_task(task))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_TRACE, 0, 0);
}

int keep_limits(u64 *ctx)
{
	u64 task = ctx[0];
	u32 resource = ctx[1];

	if (!binds_current() || !is_protected_task(task))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_LIMIT, resource, 0);
}

/* task_setnice, too */
int keep_schedule(u64 *ctx)
{
	if (!binds_current() || !is_protected_task(ctx[0]))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_SCHEDULE, 0, 0);
}

#endif
