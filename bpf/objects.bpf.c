// SPDX-License-Identifier: GPL-2.0-only
/* Self-protection (protect.bpf.c): the gate's objects, and the mounts that lead to what is kept. */

#ifdef EGS_LSM

/* ---- bpf(2) -------------------------------------------------------------------------------------- */

static __always_inline int is_own(u32 kind, u64 object, u32 offset)
{
	struct egs_object_key key = { .kind = kind };

	if (read_field(&key.id, sizeof(key.id), object, offset))
		return 0;
	return own_objects.lookup(&key) != 0;
}

/* What lies behind a descriptor, taken for each kind of object: whatever it is not, it has no such number. */
static __always_inline int is_own_descriptor(u32 descriptor)
{
	u64 table = read_pointer(read_pointer(bpf_get_current_task(), OFF_task_struct_files), OFF_files_struct_fdt);
	u64 file, object;
	u32 limit = 0;

	if (read_field(&limit, sizeof(limit), table, OFF_fdtable_max_fds) || descriptor >= limit)
		return 0;
	file = read_pointer(read_pointer(table, OFF_fdtable_fd) + descriptor * sizeof(u64), 0);
	object = read_pointer(file, OFF_file_private_data);
	if (!object)
		return 0;
	return is_own(EGS_OBJECT_MAP, object, OFF_bpf_map_id) ||
	       is_own(EGS_OBJECT_PROGRAM, read_pointer(object, OFF_bpf_prog_aux), OFF_bpf_prog_aux_id) ||
	       is_own(EGS_OBJECT_LINK, object, OFF_bpf_link_id);
}

/* Where a command has the descriptor of what it works on; -1: it has none, or does no harm by it. */
static __always_inline int descriptor_at(u32 command)
{
	if (command >= EGS_BPF_MAP_LOOKUP_ELEM && command <= EGS_BPF_MAP_GET_NEXT_KEY)
		return EGS_ATTR_FIRST;
	if (command >= EGS_BPF_MAP_LOOKUP_BATCH && command <= EGS_BPF_MAP_DELETE_BATCH)
		return EGS_ATTR_BATCH_MAP;
	switch (command) {
	case EGS_BPF_OBJ_PIN:
	case EGS_BPF_RAW_TRACEPOINT_OPEN:
		return EGS_ATTR_PINNED;
	case EGS_BPF_PROG_ATTACH:
		return EGS_ATTR_ATTACHED;
	case EGS_BPF_PROG_TEST_RUN:
	case EGS_BPF_MAP_LOOKUP_AND_DELETE_ELEM:
	case EGS_BPF_MAP_FREEZE:
	case EGS_BPF_LINK_CREATE:
	case EGS_BPF_LINK_UPDATE:
	case EGS_BPF_LINK_DETACH:
	case EGS_BPF_PROG_BIND_MAP:
		return EGS_ATTR_FIRST;
	}
	return -1;
}

/* Descriptors from before the seal, and links, which no other hook covers. */
int keep_bpf(u64 *ctx)
{
	u32 command = ctx[0];
	u64 attr = ctx[1];
	struct egs_object_key link = { .kind = EGS_OBJECT_LINK };
	u32 descriptor = 0;
	int at;

	if (!binds_current())
		return 0;
	if (command == EGS_BPF_LINK_GET_FD_BY_ID) {
		if (read_field(&link.id, sizeof(link.id), attr, 0) || !own_objects.lookup(&link))
			return 0;
		return refuse_attempt(EGS_ATTEMPT_BPF, command, 0);
	}
	at = descriptor_at(command);
	if (at < 0 || read_field(&descriptor, sizeof(descriptor), attr, at) || !is_own_descriptor(descriptor))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_BPF, command, 0);
}

/* The first of the gate's objects that an applicant asks for makes it the daemon. */
static __always_inline int becomes_daemon(void)
{
	u32 zero = 0, pid = current_process();
	struct egs_applicant *applicant = applicants.lookup(&pid);
	struct egs_daemon *daemon = daemons.lookup(&zero);

	if (!applicant || !daemon || applicant->stage != EGS_APPLICANT_APPLIES)
		return 0;
	if (__sync_val_compare_and_swap(&daemon->pid, 0, pid) != 0)
		return 0;
	daemon->start_ticks = current_start();
	daemon->namespace = applicant->namespace;
	applicants.delete(&pid);
	return 1;
}

int keep_map(u64 *ctx)
{
	if (!binds_current() || !is_own(EGS_OBJECT_MAP, ctx[0], OFF_bpf_map_id) || becomes_daemon())
		return 0;
	return refuse_attempt(EGS_ATTEMPT_BPF, 0, 0);
}

int keep_prog(u64 *ctx)
{
	if (!binds_current() || !is_own(EGS_OBJECT_PROGRAM, read_pointer(ctx[0], OFF_bpf_prog_aux), OFF_bpf_prog_aux_id) ||
	    becomes_daemon())
		return 0;
	return refuse_attempt(EGS_ATTEMPT_BPF, 0, 0);
}

/* ---- mounts -------------------------------------------------------------------------------------- */

/* Neither an empty list_head, which points to itself, nor an empty hlist_head, which is NULL. */
static __always_inline int has_entries(u64 list)
{
	u64 first = read_pointer(list, 0);

	return first && first != list;
}

/*
 * The daemon's counts as long as it lives: the kernel gives its number to the next namespace, which may be the one that
 * systemd makes for the next daemon. That one looks at its mounts once it is the daemon (kept.py).
 */
static __always_inline int is_guarded_namespace(u32 number)
{
	u32 zero = 0;
	struct egs_seal *seal = seals.lookup(&zero);
	struct egs_daemon *daemon = daemons.lookup(&zero);

	return number && seal && daemon && (number == seal->namespace || (daemon->pid && number == daemon->namespace));
}

/*
 * Whether what is mounted or unmounted there is seen by the host or the daemon: in their own mount namespaces, or in
 * one that passes it on to others. What somebody does in a namespace of their own changes nobody's paths.
 */
static __always_inline int concerns_us(u64 vfsmount)
{
	u64 mount = vfsmount - OFF_mount_mnt;
	u64 namespace = read_pointer(mount, OFF_mount_mnt_ns);
	u32 number = 0;

	read_field(&number, sizeof(number), namespace, OFF_mnt_namespace_ns + OFF_ns_common_inum);
	return is_guarded_namespace(number) || has_entries(mount + OFF_mount_mnt_share) ||
	       has_entries(mount + OFF_mount_mnt_slave_list);
}

static __always_inline int keep_mounted(u64 vfsmount, u64 dentry, u32 what)
{
	if (!protection_of(dentry) || !concerns_us(vfsmount))
		return 0;
	return refuse_attempt(what, 0, dentry);
}

int keep_mount(u64 *ctx)
{
	u64 path = ctx[1];
	u64 flags = ctx[3];

	if (!binds_current() || (flags & (EGS_MS_REMOUNT | EGS_MS_PROPAGATION)))
		return 0;
	/* What is moved away has only a name here. */
	if ((flags & EGS_MS_MOVE) && is_guarded_namespace(mount_namespace_of(bpf_get_current_task())))
		return refuse_attempt(EGS_ATTEMPT_MOUNT, 0, read_pointer(path, OFF_path_dentry));
	return keep_mounted(read_pointer(path, OFF_path_mnt), read_pointer(path, OFF_path_dentry), EGS_ATTEMPT_MOUNT);
}

int keep_move(u64 *ctx)
{
	u64 from = ctx[0];
	u64 to = ctx[1];

	if (!binds_current())
		return 0;
	if (keep_mounted(read_pointer(from, OFF_path_mnt), read_pointer(from, OFF_path_dentry), EGS_ATTEMPT_UNMOUNT))
		return -EGS_EPERM;
	return keep_mounted(read_pointer(to, OFF_path_mnt), read_pointer(to, OFF_path_dentry), EGS_ATTEMPT_MOUNT);
}

int keep_umount(u64 *ctx)
{
	u64 vfsmount = ctx[0];

	if (!binds_current())
		return 0;
	return keep_mounted(vfsmount, read_pointer(vfsmount, OFF_vfsmount_mnt_root), EGS_ATTEMPT_UNMOUNT);
}

int keep_pivot(u64 *ctx)
{
	u64 path = ctx[0];

	if (!binds_current() || !is_guarded_namespace(mount_namespace_of(bpf_get_current_task())))
		return 0;
	return refuse_attempt(EGS_ATTEMPT_MOUNT, 0, read_pointer(path, OFF_path_dentry));
}

#endif
