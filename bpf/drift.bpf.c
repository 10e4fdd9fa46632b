// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drift: what happens to governed processes while they run. These programs refuse nothing; they tell the monitor.
 *
 * Hook map
 *   drift_call    raw_tp/sys_exit            a system call has succeeded that can change what runs: whoever made it
 *   drift_child   raw_tp/task_newtask        a governed process has a child; before the child runs
 *   drift_exec    raw_tp/sched_process_exec  a governed process executed something
 *   drift_move    raw_tp/cgroup_attach_task  a governed process was moved
 *   drift_module  raw_tp/module_load         a module was loaded; where the kernel can
 *
 * An object of its own: nothing in here can keep the gate from loading. `tasks` is the gate's, by its pin.
 *
 * Every system call of the host comes by drift_call. One that failed, or whose number nobody asks about, costs two reads.
 * Why not the calls' beginning: it does not say whether they succeed, nor which file a path leads to. Why not probes of
 * kernel functions: not every kernel has them (CONFIG_KPROBES), and trampolines can be blocked.
 *
 * 32-bit programs have other numbers, and every program may call as one (int 0x80): each number has two meanings.
 *
 * No kernel struct is dereferenced here; see gate.bpf.c. Nobody ever waits for room: what finds none is counted.
 */
#include "egs_abi.h"
#include "egs_drift.h"
#include "egs_read.h"

#define EGS_TICK_NS 10000000ULL
#define EGS_TS_COMPAT 2
#define EGS_X32 0x40000000
#define EGS_PROC_MAGIC 0x9fa0
#define EGS_FMODE_WRITE 2
#define EGS_O_ACCMODE 3
#define EGS_PTRACE_TRACEME 0
#define EGS_PTRACE_ATTACH 16
#define EGS_PTRACE_SEIZE 0x4206
#define EGS_PROT_EXEC 4
#define EGS_MAP_ANONYMOUS 0x20
#define EGS_SHM_EXEC 0100000
#define EGS_IPC_SHMAT 21
#define EGS_READ_IMPLIES_EXEC 0x0400000
#define EGS_PR_CAP_AMBIENT 47
#define EGS_CLONE_THREAD 0x10000
#define EGS_CLONE_NAMESPACES 0x7e020080ULL /* NEWNET, NEWPID, NEWUSER, NEWIPC, NEWUTS, NEWCGROUP, NEWNS, NEWTIME */
#define EGS_XA_LEVELS 6

/* Commands of bpf(2) that change an object, and where in their arguments its descriptor is. */
#define EGS_BPF_MAP_UPDATE 2
#define EGS_BPF_MAP_DELETE 3
#define EGS_BPF_PROG_RUN 10
#define EGS_BPF_MAP_TAKE 21
#define EGS_BPF_MAP_FREEZE 22
#define EGS_BPF_MAP_TAKE_BATCH 25
#define EGS_BPF_MAP_UPDATE_BATCH 26
#define EGS_BPF_MAP_DELETE_BATCH 27
#define EGS_BPF_BATCH_DESCRIPTOR 36

/* struct pt_regs as 64-bit words; the loader gives the places. */
#define EGS_REGISTERS 21
struct registers {
	u64 words[EGS_REGISTERS];
};
#define EGS_REGISTER(name) ((OFF_pt_regs_##name / 8) % EGS_REGISTERS)

struct arguments {
	u64 first, second, third, fourth, fifth;
};

/* Of i386: the arguments of its first mmap(2). */
struct old_mmap {
	u32 address, length, protection, flags, descriptor, offset;
};

BPF_TABLE_PINNED("hash", u32, struct egs_task, tasks, EGS_TASKS, EGS_PINS "/tasks");
BPF_ARRAY(drift_configs, struct egs_drift_config, 1);
BPF_ARRAY(drift_calls, struct egs_drift_call, EGS_DRIFT_CALLS);
BPF_HASH(drift_objects, struct egs_drift_object_key, struct egs_drift_object, EGS_DRIFT_OBJECTS);
BPF_HASH(drift_writers, u32, u64, EGS_DRIFT_WRITERS); /* process id → its start, in clock ticks since boot */
BPF_TABLE("lru_hash", struct egs_drift_rate_key, struct egs_drift_rate, drift_rates, EGS_DRIFT_RATES); /* forgets: then it tells more */
BPF_PERCPU_ARRAY(drift_told, u64, EGS_DRIFT_KINDS);
BPF_PERCPU_ARRAY(drift_untold, u64, EGS_DRIFT_KINDS); /* beyond the rate, or no room */
BPF_PERCPU_ARRAY(drift_failures, u64, EGS_DRIFT_FAILURES);
/* Apart, so that no flood of what ordinary programs do takes the room of what only an attack does. */
BPF_RINGBUF_OUTPUT(drift_grave, EGS_DRIFT_PAGES);
BPF_RINGBUF_OUTPUT(drift_ordinary, EGS_DRIFT_PAGES);

static __always_inline void fail(u32 which)
{
	u64 *count = drift_failures.lookup(&which);

	if (count)
		__sync_fetch_and_add(count, 1);
}

static __always_inline u32 read_u32(u64 base, u32 offset)
{
	u32 value = 0;

	if (read_field(&value, sizeof(value), base, offset))
		fail(EGS_DRIFT_FAIL_STATE);
	return value;
}

static __always_inline u32 own_pid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static __always_inline u64 file_name(u64 file)
{
	u64 dentry = read_pointer(file, OFF_file_f_path + OFF_path_dentry);

	return read_pointer(dentry, OFF_dentry_d_name + OFF_qstr_name);
}

static __always_inline u64 file_of(u64 descriptor)
{
	u64 table = read_pointer(read_pointer(bpf_get_current_task(), OFF_task_struct_files), OFF_files_struct_fdt);

	if (descriptor >= read_u32(table, OFF_fdtable_max_fds))
		return 0;
	return read_pointer(read_pointer(table, OFF_fdtable_fd) + descriptor * 8, 0);
}

/* Whether there is one more event of this kind by this process in this second. */
static __always_inline int permitted(u32 pid, u32 kind, u32 most)
{
	struct egs_drift_rate_key key = { .pid = pid, .kind = kind };
	u64 second = bpf_ktime_get_boot_ns() / 1000000000;
	struct egs_drift_rate fresh = { .second = second, .count = 1 };
	struct egs_drift_rate *rate = drift_rates.lookup(&key);

	if (!rate) {
		if (drift_rates.update(&key, &fresh))
			fail(EGS_DRIFT_FAIL_RATE);
		return 1;
	}
	if (rate->second != second) {
		rate->second = second;
		rate->count = 0;
	}
	rate->count++; /* of threads at once some are not counted: a few more are told */
	return rate->count <= most;
}

static __always_inline int is_ordinary(u32 kind)
{
	return kind == EGS_DRIFT_CODE_MAPPED || kind == EGS_DRIFT_CODE_PROTECTED || kind == EGS_DRIFT_EXEC ||
	       kind == EGS_DRIFT_CHILD;
}

static __always_inline void count(u32 kind, int told)
{
	u64 *number = told ? drift_told.lookup(&kind) : drift_untold.lookup(&kind);

	if (number)
		__sync_fetch_and_add(number, 1);
}

/* Something to tell. */
struct told {
	u32 kind;
	u32 by;
	u32 governor; /* the process by which it is governed; 0: itself */
	u64 thread;   /* whose process it is about; 0: of the host */
	u64 address;
	u64 number;
	u64 file; /* that it is about */
	u64 name; /* in the kernel's memory */
	struct egs_drift_object *object;
};

static __always_inline void read_credentials(struct egs_drift_event *event, u64 thread)
{
	u64 cred = read_pointer(thread, OFF_task_struct_cred);
	int failed = 0;

	failed |= read_field(&event->uid, sizeof(event->uid), cred, OFF_cred_uid);
	failed |= read_field(&event->euid, sizeof(event->euid), cred, OFF_cred_euid);
	failed |= read_field(&event->gid, sizeof(event->gid), cred, OFF_cred_gid);
	failed |= read_field(&event->egid, sizeof(event->egid), cred, OFF_cred_egid);
	failed |= read_field(&event->permitted, sizeof(event->permitted), cred, OFF_cred_cap_permitted);
	failed |= read_field(&event->effective, sizeof(event->effective), cred, OFF_cred_cap_effective);
	if (failed)
		fail(EGS_DRIFT_FAIL_STATE);
}

/* Tell it, if it is about the host or about a process that is governed. What cannot be told is counted. */
static __always_inline void tell(struct told *told)
{
	struct egs_drift_event *event;
	struct egs_task *task = 0;
	u32 pid = 0, governor, failed = 0, ordinary = is_ordinary(told->kind);

	if (told->thread) {
		if (read_field(&pid, sizeof(pid), told->thread, OFF_task_struct_tgid)) {
			fail(EGS_DRIFT_FAIL_TARGET);
			return;
		}
		governor = told->governor ? told->governor : pid;
		task = tasks.lookup(&governor);
		if (!task)
			return;
	}
	if (!permitted(told->by ? told->by : pid, told->kind, ordinary ? EGS_DRIFT_RATE_ORDINARY : EGS_DRIFT_RATE)) {
		count(told->kind, 0);
		return;
	}
	if (ordinary)
		event = drift_ordinary.ringbuf_reserve(sizeof(*event));
	else
		event = drift_grave.ringbuf_reserve(sizeof(*event));
	if (!event) {
		fail(EGS_DRIFT_FAIL_ROOM);
		count(told->kind, 0);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = told->kind;
	event->scope = task ? task->scope : EGS_DRIFT_NO_SCOPE;
	event->execution = task ? task->execution : 0;
	event->time = bpf_ktime_get_boot_ns();
	event->pid = pid;
	event->by = told->by == pid ? 0 : told->by;
	event->address = told->address;
	event->number = told->number;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	if (told->thread)
		failed |= read_field(&event->started, sizeof(event->started),
				     read_pointer(told->thread, OFF_task_struct_group_leader), OFF_task_struct_start_boottime);
	if (told->file)
		failed |= read_file_id(&event->file, told->file);
	if (told->object)
		__builtin_memcpy(event->name, told->object->name, sizeof(told->object->name));
	else if (told->name)
		failed |= bpf_probe_read_kernel_str(event->name, sizeof(event->name), (void *)told->name) < 0;
	if (failed)
		fail(EGS_DRIFT_FAIL_STATE);
	read_credentials(event, told->thread ? told->thread : bpf_get_current_task());
	count(told->kind, 1);
	drift_grave.ringbuf_submit(event, 0); /* whichever of the two it is in */
}

/* The thread that a kernel's struct pid is of; 0: it has ended. */
static __always_inline u64 thread_of(u64 pid)
{
	u64 link = pid ? read_pointer(pid, OFF_pid_tasks) : 0;

	return link ? link - OFF_task_struct_pid_links : 0;
}

/* The thread that the caller means by a number: in its own namespace, whose tree of numbers is walked. */
static __always_inline u64 thread_by_number(u32 number)
{
	u64 own = read_pointer(bpf_get_current_task(), OFF_task_struct_thread_pid);
	u64 level = read_u32(own, OFF_pid_level);
	u64 space = read_pointer(own + level * SIZE_upid, OFF_pid_numbers + OFF_upid_ns);
	u64 entry = read_pointer(space, OFF_pid_namespace_idr + OFF_idr_idr_rt + OFF_xarray_xa_head);

	for (int depth = 0; depth < EGS_XA_LEVELS; depth++) {
		u64 node = entry - 2;
		u8 shift = 0;

		if ((entry & 3) != 2)
			break; /* no node: what was looked for */
		if (read_field(&shift, sizeof(shift), node, OFF_xa_node_shift)) {
			fail(EGS_DRIFT_FAIL_STATE);
			return 0;
		}
		entry = read_pointer(node, OFF_xa_node_slots + ((number >> (shift & 31)) & 63) * 8);
	}
	return thread_of(entry);
}

/* The caller did this to the process of that thread. */
static __always_inline void did_to(struct told *told, u32 kind, u64 thread)
{
	if (!thread) {
		fail(EGS_DRIFT_FAIL_TARGET);
		return;
	}
	told->kind = kind;
	told->thread = thread;
}

/* Somebody has opened a file, however: is it the memory of a process, and may it be written? */
static __always_inline void look_at_opened(struct told *told, u64 descriptor)
{
	u64 file = file_of(descriptor);
	u64 inode;
	char name[4] = {};

	if (!(read_u32(file, OFF_file_f_mode) & EGS_FMODE_WRITE))
		return;
	inode = read_pointer(file, OFF_file_f_inode);
	if (read_pointer(read_pointer(inode, OFF_inode_i_sb), OFF_super_block_s_magic) != EGS_PROC_MAGIC)
		return;
	if (bpf_probe_read_kernel(name, sizeof(name), (void *)file_name(file))) {
		fail(EGS_DRIFT_FAIL_STATE);
		return;
	}
	if (name[0] != 'm' || name[1] != 'e' || name[2] != 'm' || name[3])
		return;
	did_to(told, EGS_DRIFT_MEMORY_OPENED,
	       thread_of(read_pointer(inode - OFF_proc_inode_vfs_inode, OFF_proc_inode_pid)));
}

static __always_inline void look_at_trace(struct told *told, u64 request)
{
	u64 current = bpf_get_current_task();
	u64 traced = 0;

	told->number = request;
	if (request == EGS_PTRACE_TRACEME) {
		did_to(told, EGS_DRIFT_TRACED, current);
		told->by = read_u32(read_pointer(current, OFF_task_struct_parent), OFF_task_struct_tgid);
	} else if (request == EGS_PTRACE_ATTACH || request == EGS_PTRACE_SEIZE) {
		/* Whom it traces since just now is the first of the caller's list, which nobody else adds to. */
		traced = read_pointer(current, OFF_task_struct_ptraced);
		if (traced == current + OFF_task_struct_ptraced)
			traced = OFF_task_struct_ptrace_entry; /* it has ended */
		did_to(told, EGS_DRIFT_TRACED, traced - OFF_task_struct_ptrace_entry);
	}
}

static __always_inline void look_at_mapping(struct told *told, struct arguments *a, u64 address)
{
	if (!(a->third & EGS_PROT_EXEC))
		return;
	told->address = address;
	if (a->fourth & EGS_MAP_ANONYMOUS) {
		told->kind = EGS_DRIFT_CODE_ANONYMOUS;
		return;
	}
	told->kind = EGS_DRIFT_CODE_MAPPED;
	/* Another thread may have closed the descriptor, or put another file there: what is mapped says /proc/PID/maps. */
	told->file = file_of(a->fifth);
	if (told->file)
		told->name = file_name(told->file);
	else
		fail(EGS_DRIFT_FAIL_STATE);
}

/* Memory that became code, of a file or of none: whoever is told looks. */
static __always_inline void became_code(struct told *told, u64 address, u64 bytes)
{
	told->kind = EGS_DRIFT_CODE_PROTECTED;
	told->address = address;
	told->number = bytes;
}

static __always_inline void look_at_old_mapping(struct told *told, u64 arguments, u64 address)
{
	struct old_mmap call = {};

	if (bpf_probe_read_user(&call, sizeof(call), (void *)arguments))
		fail(EGS_DRIFT_FAIL_USER); /* it may be code */
	else if (!(call.protection & EGS_PROT_EXEC))
		return;
	became_code(told, address, call.length);
}

static __always_inline int may_write(u32 pid)
{
	u64 *start = drift_writers.lookup(&pid);
	u64 born = 0;

	if (!start)
		return 0;
	if (read_field(&born, sizeof(born), read_pointer(bpf_get_current_task(), OFF_task_struct_group_leader),
		       OFF_task_struct_start_boottime)) {
		fail(EGS_DRIFT_FAIL_STATE);
		return 0;
	}
	return *start == born / EGS_TICK_NS;
}

/* What a command of bpf(2) changes; 0: it creates, reads or waits. The gate's links can only be closed: no command changes them. */
static __always_inline u32 changed_by(u64 command)
{
	switch (command) {
	case EGS_BPF_MAP_UPDATE:
	case EGS_BPF_MAP_DELETE:
	case EGS_BPF_MAP_TAKE:
	case EGS_BPF_MAP_FREEZE:
	case EGS_BPF_MAP_TAKE_BATCH:
	case EGS_BPF_MAP_UPDATE_BATCH:
	case EGS_BPF_MAP_DELETE_BATCH:
		return EGS_DRIFT_MAP;
	case EGS_BPF_PROG_RUN:
		return EGS_DRIFT_PROGRAM;
	default:
		return 0;
	}
}

/* Somebody changed something by bpf(2): is it the gate's? */
static __always_inline void look_at_bpf(struct told *told, u64 command, u64 arguments)
{
	struct egs_drift_object_key key = { .kind = changed_by(command) };
	u32 place = 0, descriptor = 0;
	u64 target;

	if (!key.kind)
		return;
	if (command >= EGS_BPF_MAP_TAKE_BATCH && command <= EGS_BPF_MAP_DELETE_BATCH)
		place = EGS_BPF_BATCH_DESCRIPTOR;
	if (bpf_probe_read_user(&descriptor, sizeof(descriptor), (void *)(arguments + place))) {
		fail(EGS_DRIFT_FAIL_USER);
		return;
	}
	target = read_pointer(file_of(descriptor), OFF_file_private_data);
	if (key.kind == EGS_DRIFT_MAP)
		key.id = read_u32(target, OFF_bpf_map_id);
	else
		key.id = read_u32(read_pointer(target, OFF_bpf_prog_aux), OFF_bpf_prog_aux_id);
	told->object = drift_objects.lookup(&key);
	if (!told->object)
		return;
	/* Who has just entered itself in the list of writers is one by now. */
	if (!told->object->always && may_write(told->by))
		return;
	told->kind = EGS_DRIFT_GATE_WRITTEN;
	told->thread = 0;
	told->number = command;
}

/* What there is to tell of a call that has succeeded; told->kind stays 0 when nothing is. */
static __always_inline void look_at(struct told *told, u32 action, struct arguments *a, u64 result)
{
	switch (action) {
	case EGS_CALL_OPEN:
		if (a->second & EGS_O_ACCMODE)
			look_at_opened(told, result);
		break;
	case EGS_CALL_OPENAT:
		if (a->third & EGS_O_ACCMODE)
			look_at_opened(told, result);
		break;
	case EGS_CALL_OPENED:
		look_at_opened(told, result);
		break;
	case EGS_CALL_PTRACE:
		look_at_trace(told, a->first);
		break;
	case EGS_CALL_VM_WRITE:
		did_to(told, EGS_DRIFT_MEMORY_WRITTEN, thread_by_number(a->first));
		told->number = result;
		break;
	case EGS_CALL_SETNS:
		told->kind = EGS_DRIFT_NAMESPACE;
		told->number = a->second & EGS_CLONE_NAMESPACES;
		break;
	case EGS_CALL_UNSHARE:
		told->number = a->first & EGS_CLONE_NAMESPACES;
		if (told->number)
			told->kind = EGS_DRIFT_NAMESPACE;
		break;
	case EGS_CALL_ROOT:
		told->kind = EGS_DRIFT_ROOT;
		break;
	case EGS_CALL_MMAP:
		look_at_mapping(told, a, result);
		break;
	case EGS_CALL_OLD_MMAP:
		look_at_old_mapping(told, a->first, result);
		break;
	case EGS_CALL_MPROTECT:
		if (a->third & EGS_PROT_EXEC)
			became_code(told, a->first, a->second);
		break;
	case EGS_CALL_PERSONALITY:
		/* From now on all memory that it may read is code. 0xffffffff only asks. */
		if ((a->first & EGS_READ_IMPLIES_EXEC) && (u32)a->first != 0xffffffff)
			told->kind = EGS_DRIFT_CODE_ANONYMOUS;
		break;
	case EGS_CALL_SHMAT:
		told->address = result;
		if (a->third & EGS_SHM_EXEC)
			told->kind = EGS_DRIFT_CODE_ANONYMOUS;
		break;
	case EGS_CALL_IPC: /* where it is, is in the caller's memory */
		if ((a->first & 0xffff) == EGS_IPC_SHMAT && (a->third & EGS_SHM_EXEC))
			told->kind = EGS_DRIFT_CODE_ANONYMOUS;
		break;
	case EGS_CALL_CREDENTIALS:
		told->kind = EGS_DRIFT_CREDENTIALS;
		break;
	case EGS_CALL_PRCTL:
		if (a->first == EGS_PR_CAP_AMBIENT)
			told->kind = EGS_DRIFT_CREDENTIALS;
		break;
	case EGS_CALL_BPF:
		look_at_bpf(told, a->first, a->second);
		break;
	default:
		break; /* of the other kind of programs */
	}
}

/* Most mappings are no code, and most files are opened to be read: of those nothing more is read. */
static __always_inline int has_demanded(u32 demand, u64 registers)
{
	u64 third = read_pointer(registers, OFF_pt_regs_dx);

	return demand == EGS_DEMAND_CODE ? (third & EGS_PROT_EXEC) != 0 : (third & EGS_O_ACCMODE) != 0;
}

int drift_call(struct bpf_raw_tracepoint_args *ctx)
{
	s64 result = ctx->args[1];
	u64 number = 0;
	struct registers registers;
	struct arguments a;
	struct told told = {};
	struct egs_drift_call *call;
	u32 index, action;

	if (result < 0)
		return 0;
	if (read_field(&number, sizeof(number), ctx->args[0], OFF_pt_regs_orig_ax)) {
		fail(EGS_DRIFT_FAIL_STATE);
		return 0;
	}
	index = number & (EGS_DRIFT_CALLS - 1);
	call = drift_calls.lookup(&index);
	if (!call || !(call->native | call->compat))
		return 0;
	if (call->demand && !has_demanded(call->demand, ctx->args[0]))
		return 0;
	if (read_field(&registers, sizeof(registers), ctx->args[0], 0)) {
		fail(EGS_DRIFT_FAIL_STATE);
		return 0;
	}
	told.thread = bpf_get_current_task();
	told.by = own_pid();
	if (read_u32(told.thread, OFF_task_struct_thread_info + OFF_thread_info_status) & EGS_TS_COMPAT) {
		action = call->compat;
		a.first = (u32)registers.words[EGS_REGISTER(bx)];
		a.second = (u32)registers.words[EGS_REGISTER(cx)];
		a.third = (u32)registers.words[EGS_REGISTER(dx)];
		a.fourth = (u32)registers.words[EGS_REGISTER(si)];
		a.fifth = (u32)registers.words[EGS_REGISTER(di)];
	} else {
		action = call->native;
		a.first = registers.words[EGS_REGISTER(di)];
		a.second = registers.words[EGS_REGISTER(si)];
		a.third = registers.words[EGS_REGISTER(dx)];
		a.fourth = registers.words[EGS_REGISTER(r10)];
		a.fifth = registers.words[EGS_REGISTER(r8)];
	}
	look_at(&told, action, &a, result);
	if (told.kind)
		tell(&told);
	return 0;
}

/* The cgroup of the version 2 hierarchy that a thread is in. */
static __always_inline u64 cgroup_of(u64 thread)
{
	return read_pointer(read_pointer(thread, OFF_task_struct_cgroups), OFF_css_set_dfl_cgrp);
}

static __always_inline u64 cgroup_number(u64 cgroup)
{
	return read_pointer(read_pointer(cgroup, OFF_cgroup_kn), OFF_kernfs_node_id);
}

/* The child is governed when it wakes up, a moment from now: until then it is what its parent is. */
int drift_child(struct bpf_raw_tracepoint_args *ctx)
{
	u64 parent = bpf_get_current_task(), flags = ctx->args[1];
	struct told told = { .kind = EGS_DRIFT_CHILD, .thread = ctx->args[0], .by = own_pid(), .governor = own_pid() };

	if (flags & EGS_CLONE_THREAD)
		return 0;
	told.number = flags & EGS_CLONE_NAMESPACES;
	if (read_pointer(told.thread, OFF_task_struct_cgroups) != read_pointer(parent, OFF_task_struct_cgroups))
		told.address = cgroup_number(cgroup_of(told.thread)); /* CLONE_INTO_CGROUP */
	if (told.number || told.address)
		told.kind = EGS_DRIFT_CHILD_APART;
	tell(&told);
	return 0;
}

int drift_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u64 bprm = ctx->args[2];
	struct told told = { .kind = EGS_DRIFT_EXEC, .thread = ctx->args[0] };
	u32 links = 1;
	char name[8] = {};

	told.file = read_pointer(bprm, OFF_linux_binprm_file);
	told.name = read_pointer(bprm, OFF_linux_binprm_filename);
	if (read_field(&links, sizeof(links), read_pointer(told.file, OFF_file_f_inode), OFF_inode_i_nlink) ||
	    bpf_probe_read_kernel(name, sizeof(name), (void *)file_name(told.file)))
		fail(EGS_DRIFT_FAIL_STATE);
	if (!links)
		told.number = EGS_DRIFT_EXEC_NAMELESS;
	if (!links && name[0] == 'm' && name[1] == 'e' && name[2] == 'm' && name[3] == 'f' && name[4] == 'd' &&
	    name[5] == ':')
		told.number |= EGS_DRIFT_EXEC_MEMFD;
	tell(&told);
	return 0;
}

int drift_move(struct bpf_raw_tracepoint_args *ctx)
{
	u64 cgroup = ctx->args[0];
	struct told told = { .kind = EGS_DRIFT_CGROUP, .thread = ctx->args[2], .name = ctx->args[1], .by = own_pid() };
	int hierarchy = -1;

	read_field(&hierarchy, sizeof(hierarchy), read_pointer(cgroup, OFF_cgroup_root), OFF_cgroup_root_hierarchy_id);
	if (hierarchy)
		return 0; /* of version 1, or not to be read: then a sweep sees where it is */
	told.number = cgroup_number(cgroup);
	tell(&told);
	return 0;
}

#ifdef OFF_module_name
int drift_module(struct bpf_raw_tracepoint_args *ctx)
{
	struct told told = { .kind = EGS_DRIFT_MODULE, .by = own_pid(), .name = ctx->args[0] + OFF_module_name };

	tell(&told);
	return 0;
}
#endif
