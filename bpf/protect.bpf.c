// SPDX-License-Identifier: GPL-2.0-only
/*
 * Self-protection, on the tier `lsm`: while the gate is sealed, nobody but the daemon stops the daemon, or changes the
 * gate, what it decides by, or the program that the daemon is. root and process 1 included.
 *
 * Here: who is bound, and how no is said. keep.bpf.c: files, the daemon. objects.bpf.c: bpf(2), mounts. become.bpf.c: who
 * becomes the daemon.
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

#endif
