// SPDX-License-Identifier: GPL-2.0-only
/*
 * Self-protection, on the tier `lsm`: while the gate is sealed, nobody but the daemon stops the daemon, or changes the
 * gate, what it decides by, or the program that the daemon is. root and process 1 included.
 *
 * Hook map
 *   keep_signal, keep_sigio         lsm/task_kill, file_send_sigiotask   signals to the daemon; and, sealed or not, those
 *                                                                        that would continue what is held (hold.bpf.c)
 *   keep_trace                      lsm/ptrace_access_check              its memory and descriptors
 *   keep_limits                     lsm/task_setrlimit                   a limit on CPU time kills
 *   keep_schedule                   lsm/task_setscheduler, task_setnice  its heartbeat
 *   keep_bpf, keep_map, keep_prog   lsm/bpf, bpf_map, bpf_prog           the gate's maps, programs and links
 *   keep_open                       lsm/file_open                        writing to what is kept
 *   keep_create … keep_setxattr      lsm/inode_*                          its names and attributes
 *   keep_mount … keep_pivot         lsm/sb_*, move_mount                 what paths lead to
 *   see_program, see_code           lsm/bprm_check_security, mmap_file   who becomes the daemon, below
 *   see_exec, see_exit              raw_tp/sched_process_exec, _exit     as above
 *   see_free                        lsm/task_free                        as above
 *
 * Not sealed, each ends after one look at an array, or at two.
 *
 * A daemon that starts while the gate is sealed, because the last one crashed, is the daemon when it has executed nothing
 * but what is kept. It begins with an exec of the registered interpreter, while the registered daemon is gone. From then on
 * each file that it opens or maps as code has to be one that is kept, whatever its name and mount namespace; what is not
 * taints it for good. The exec has to end with the registered arguments, as root, untraced, without a seccomp filter, and
 * without variables that make programs load code. Then the first of the gate's objects that it asks for is given to it,
 * and it is the daemon until it ends or executes something else.
 */
#ifdef EGS_LSM

#define EGS_PTRACE_MODE_ATTACH 2
#define EGS_MS_REMOUNT 0x20
#define EGS_MS_MOVE 0x2000
#define EGS_MS_PROPAGATION 0x1e0000 /* MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED */
#define EGS_PROC_MAGIC 0x9fa0
#define EGS_SYSFS_MAGIC 0x62656572
#define EGS_CGROUP_MAGIC 0x27e0eb
#define EGS_CGROUP2_MAGIC 0x63677270
#define EGS_FILE_TYPE 0170000
#define EGS_FOLDER 0040000
#define EGS_SHUTDOWN_COMM 0x2d646d6574737973ULL /* "systemd-" */
#define EGS_SHUTDOWN_REST 0x776f6474756873ULL   /* "shutdow": names end after 15 bytes */
#define EGS_SIGURG 23
#define EGS_SECOND_NS 1000000000ULL

/* bpf(2), enum bpf_cmd and union bpf_attr: their order is the kernel's promise. */
#define EGS_BPF_MAP_LOOKUP_ELEM 1
#define EGS_BPF_MAP_GET_NEXT_KEY 4
#define EGS_BPF_OBJ_PIN 6
#define EGS_BPF_PROG_ATTACH 8
#define EGS_BPF_PROG_TEST_RUN 10
#define EGS_BPF_RAW_TRACEPOINT_OPEN 17
#define EGS_BPF_MAP_LOOKUP_AND_DELETE_ELEM 21
#define EGS_BPF_MAP_FREEZE 22
#define EGS_BPF_MAP_LOOKUP_BATCH 24
#define EGS_BPF_MAP_DELETE_BATCH 27
#define EGS_BPF_LINK_CREATE 28
#define EGS_BPF_LINK_UPDATE 29
#define EGS_BPF_LINK_GET_FD_BY_ID 30
#define EGS_BPF_LINK_DETACH 34
#define EGS_BPF_PROG_BIND_MAP 35
#define EGS_ATTR_FIRST 0
#define EGS_ATTR_ATTACHED 4
#define EGS_ATTR_PINNED 8
#define EGS_ATTR_BATCH_MAP 36

BPF_ARRAY(seals, struct egs_seal, 1);
BPF_ARRAY(daemons, struct egs_daemon, 1);
BPF_ARRAY(daemon_argvs, struct egs_argv, 1);
BPF_HASH(protected_files, struct egs_file_key, u32, EGS_PROTECTED_FILES);
BPF_HASH(own_objects, struct egs_object_key, u32, EGS_OWN_OBJECTS);
BPF_HASH(harmless_names, struct egs_harmless_key, u32, 64);
BPF_HASH(applicants, u32, struct egs_applicant, EGS_APPLICANTS);
BPF_ARRAY(attempt_rates, struct egs_attempt_rate, 1);
BPF_PERCPU_ARRAY(daemon_scratches, struct scratch, 1); /* see_exec alone writes there, and is nested in none of itself */

/* What is tried, and on what. */
struct attempt {
	u32 what;
	u32 number;
	u64 dentry; /* 0: no file */
};

/* ---- who --------------------------------------------------------------------------------------- */

static __always_inline int is_sealed(void)
{
	u32 zero = 0;
	struct egs_seal *seal = seals.lookup(&zero);

	if (!seal || !seal->sealed)
		return 0;
	return !seal->lifted_until || bpf_ktime_get_boot_ns() >= seal->lifted_until;
}

static __always_inline u32 current_process(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static __always_inline u64 current_start(void)
{
	u64 leader = read_pointer(bpf_get_current_task(), OFF_task_struct_group_leader);
	u64 start = 0;

	read_field(&start, sizeof(start), leader, OFF_task_struct_start_boottime);
	return start / EGS_TICK_NS;
}

/* A number alone is not the daemon: should the kernel have kept its end from us, somebody else bears it. */
static __always_inline int is_daemon(struct egs_daemon *daemon)
{
	return daemon->pid == current_process() && daemon->start_ticks == current_start();
}

/* Sealed, and not for the one who asks. */
static __always_inline int binds_current(void)
{
	u32 zero = 0;
	struct egs_daemon *daemon;

	if (!is_sealed())
		return 0;
	daemon = daemons.lookup(&zero);
	return !daemon || !is_daemon(daemon);
}

/* The daemon, or what may become it, unless it is who asks. */
static __always_inline int is_protected_task(u64 task)
{
	u32 zero = 0, pid = 0;
	struct egs_daemon *daemon = daemons.lookup(&zero);
	struct egs_applicant *applicant;

	if (!daemon || read_field(&pid, sizeof(pid), task, OFF_task_struct_tgid))
		return 0;
	if (pid == current_process())
		return 0;
	applicant = applicants.lookup(&pid);
	return daemon->pid == pid || (applicant && applicant->stage == EGS_APPLICANT_APPLIES);
}

/* Process 1 becomes systemd-shutdown when the system goes down, and nothing else from then on. */
static __always_inline int is_shutdown(void)
{
	u64 name[2] = {};

	if (current_process() != 1)
		return 0;
	bpf_get_current_comm(name, sizeof(name));
	return name[0] == EGS_SHUTDOWN_COMM && name[1] == EGS_SHUTDOWN_REST;
}

static __always_inline u32 mount_namespace_of(u64 task)
{
	u64 namespace = read_pointer(read_pointer(task, OFF_task_struct_nsproxy), OFF_nsproxy_mnt_ns);
	u32 number = 0;

	read_field(&number, sizeof(number), namespace, OFF_mnt_namespace_ns + OFF_ns_common_inum);
	return number;
}

/* ---- saying no ----------------------------------------------------------------------------------- */

/* Whoever tries in a loop does not fill the ring buffer: governed programs need it. */
static __always_inline int may_report(u64 now)
{
	u32 zero = 0;
	struct egs_attempt_rate *rate = attempt_rates.lookup(&zero);
	u64 second = now / EGS_SECOND_NS;

	if (!rate)
		return 0;
	if (rate->second != second) {
		rate->second = second;
		rate->count = 0;
	}
	if (rate->count >= EGS_ATTEMPTS)
		return 0;
	__sync_fetch_and_add(&rate->count, 1);
	return 1;
}

static __always_inline void report(struct attempt *attempt)
{
	u64 now = bpf_ktime_get_boot_ns();
	struct egs_attempt_event *event = 0;
	unsigned long number = 0;
	u64 inode;

	if (may_report(now))
		event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		count_failure(EGS_FAIL_ATTEMPT_EVENT); /* refused all the same */
		return;
	}
	event->type = EGS_EVENT_ATTEMPT;
	event->what = attempt->what;
	event->number = attempt->number;
	event->time = now;
	event->pid = current_process();
	event->uid = bpf_get_current_uid_gid();
	event->inode = 0;
	event->device = 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	__builtin_memset(event->name, 0, sizeof(event->name));
	if (attempt->dentry) {
		inode = read_pointer(attempt->dentry, OFF_dentry_d_inode);
		if (!read_field(&number, sizeof(number), inode, OFF_inode_i_ino))
			event->inode = number;
		read_field(&event->device, sizeof(event->device), read_pointer(attempt->dentry, OFF_dentry_d_sb),
			   OFF_super_block_s_dev);
		bpf_probe_read_kernel_str(event->name, sizeof(event->name),
					  (void *)read_pointer(attempt->dentry, OFF_dentry_d_name + OFF_qstr_name));
	}
	events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
}

static __always_inline int refuse_attempt(u32 what, u32 number, u64 dentry)
{
	struct attempt attempt = { .what = what, .number = number, .dentry = dentry };

	report(&attempt);
	return -EGS_EPERM;
}

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
