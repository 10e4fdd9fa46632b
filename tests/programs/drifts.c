// SPDX-License-Identifier: Apache-2.0
/*
 * Drifts, as its first argument says, or does it to the process that its second names. Exits with 0 when it succeeded,
 * and with the error's number when not. `wait` prints an address of its memory, and goes on until its input ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define NOBODY 65534

static const unsigned char code[] = { 0xb8, 0x2a, 0, 0, 0, 0xc3 }; /* return 42 */
static char word[] = "untouched";

static int check(int succeeded)
{
	return succeeded ? 0 : errno ? errno : 255;
}

static int runs(void *memory)
{
	return ((int (*)(void))memory)() == 42;
}

static void *memory(int protection, int flags)
{
	void *place = mmap(0, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	return place == MAP_FAILED ? 0 : place;
}

static long call32(long number, long first, long second, long third)
{
	long result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(first), "c"(second), "d"(third)
			 : "memory", "r8", "r9", "r10", "r11");
	return result;
}

static int anonymous(void)
{
	void *place = memory(PROT_READ | PROT_WRITE | PROT_EXEC, 0);

	return check(place && memcpy(place, code, sizeof(code)) && runs(place));
}

static int protects(int as32)
{
	void *place = memory(PROT_READ | PROT_WRITE, MAP_32BIT);

	if (!place)
		return check(0);
	memcpy(place, code, sizeof(code));
	if (as32)
		return check(call32(125, (long)place, PAGE, PROT_READ | PROT_EXEC) == 0 && runs(place));
	return check(mprotect(place, PAGE, PROT_READ | PROT_EXEC) == 0 && runs(place));
}

static int maps32(void)
{
	unsigned int *arguments = memory(PROT_READ | PROT_WRITE, MAP_32BIT);
	unsigned char *place;

	if (!arguments)
		return check(0);
	arguments[1] = PAGE;
	arguments[2] = PROT_READ | PROT_WRITE | PROT_EXEC;
	arguments[3] = MAP_PRIVATE | MAP_ANONYMOUS;
	arguments[4] = -1;
	place = (void *)(call32(90, (long)arguments, 0, 0) & 0xffffffff);
	return check(memcpy(place, code, sizeof(code)) && runs(place));
}

static int implies(void)
{
	void *place;

	if (personality(READ_IMPLIES_EXEC) < 0)
		return check(0);
	place = memory(PROT_READ | PROT_WRITE, 0);
	return check(place && memcpy(place, code, sizeof(code)) && runs(place));
}

static int shared(void)
{
	int id = shmget(IPC_PRIVATE, PAGE, 0700);
	void *place = shmat(id, 0, SHM_EXEC);

	shmctl(id, IPC_RMID, 0);
	return check(place != (void *)-1 && memcpy(place, code, sizeof(code)) && runs(place));
}

static int maps(const char *path)
{
	int file = open(path, O_RDONLY);

	return check(mmap(0, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) != MAP_FAILED);
}

static int enters(void)
{
	return check(setns(open("/proc/self/ns/uts", O_RDONLY), 0) == 0);
}

static int born_apart(void)
{
	int pid = syscall(SYS_clone, CLONE_NEWUTS | SIGCHLD, 0, 0, 0, 0);

	if (pid == 0)
		_exit(0);
	return check(pid > 0 && waitpid(pid, 0, 0) == pid);
}

static int regains(void)
{
	return check(setresuid(NOBODY, NOBODY, 0) == 0 && setresuid(-1, 0, -1) == 0);
}

static int regains_group(void)
{
	return check(setresgid(NOBODY, NOBODY, 0) == 0 && setresuid(NOBODY, NOBODY, NOBODY) == 0 &&
		     setresgid(-1, 0, -1) == 0);
}

/* In a mount namespace, as it takes one: the folder it is in becomes all there is. */
static int pivots(void)
{
	return check(unshare(CLONE_NEWNS) == 0 && mount("none", "/", 0, MS_REC | MS_PRIVATE, 0) == 0 &&
		     mount("/var/tmp", "/var/tmp", 0, MS_BIND, 0) == 0 && chdir("/var/tmp") == 0 &&
		     syscall(SYS_pivot_root, ".", ".") == 0);
}

static int keeps_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2];

	if (prctl(PR_SET_KEEPCAPS, 1) || setresuid(NOBODY, NOBODY, NOBODY) || syscall(SYS_capget, &header, data))
		return check(0);
	data[0].effective = data[0].permitted;
	data[1].effective = data[1].permitted;
	return check(syscall(SYS_capset, &header, data) == 0);
}

static int executes_memory(void)
{
	char *argv[] = { "true", 0 };
	char buffer[65536];
	int source = open("/bin/true", O_RDONLY), copy = memfd_create("drifts", MFD_CLOEXEC);
	ssize_t size;

	while ((size = read(source, buffer, sizeof(buffer))) > 0)
		if (write(copy, buffer, size) != size)
			return check(0);
	fexecve(copy, argv, environ);
	return check(0);
}

static int writes_memory_of(const char *path, unsigned long place)
{
	int file = open(path, O_RDWR);

	return check(pwrite(file, "rewritten", 9, place) == 9);
}

static int writes_directly(int pid, unsigned long place)
{
	struct iovec from = { "rewritten", 9 }, to = { (void *)place, 9 };

	return check(process_vm_writev(pid, &from, 1, &to, 1, 0) == 9);
}

static int traces(long request, int pid)
{
	return check(ptrace(request, pid, 0, 0) == 0);
}

/* A process of a namespace writes into another one, by its number there. */
static int writes_nested(void)
{
	int first, second, status;

	if (unshare(CLONE_NEWPID))
		return check(0);
	first = fork();
	if (first == 0) {
		second = fork();
		if (second == 0) {
			pause();
			_exit(0);
		}
		status = writes_directly(second, (unsigned long)word);
		kill(second, SIGKILL);
		_exit(status);
	}
	waitpid(first, &status, 0);
	return WEXITSTATUS(status);
}

static int storms(int count)
{
	for (int i = 0; i < count; i++)
		if (!memory(PROT_READ | PROT_EXEC, 0))
			return check(0);
	return 0;
}

/* As a compiler at run time does: the same memory is written and becomes code again. */
static int protects_often(int count)
{
	void *place = memory(PROT_READ | PROT_WRITE, 0);

	for (int i = 0; i < count; i++) {
		if (mprotect(place, PAGE, PROT_READ | PROT_WRITE))
			return check(0);
		memcpy(place, code, sizeof(code));
		if (mprotect(place, PAGE, PROT_READ | PROT_EXEC) || !runs(place))
			return check(0);
	}
	return 0;
}

static int waits(void)
{
	printf("%#lx\n", (unsigned long)word);
	fflush(stdout);
	return getchar() == EOF ? 0 : strcmp(word, "rewritten");
}

int main(int argc, char **argv)
{
	const char *act = argv[1], *more = argc > 2 ? argv[2] : "0";
	unsigned long place = argc > 3 ? strtoul(argv[3], 0, 0) : 0;

	if (!strcmp(act, "anonymous"))
		return anonymous();
	if (!strcmp(act, "protects"))
		return protects(0);
	if (!strcmp(act, "protects32"))
		return protects(1);
	if (!strcmp(act, "maps32"))
		return maps32();
	if (!strcmp(act, "implies"))
		return implies();
	if (!strcmp(act, "shared"))
		return shared();
	if (!strcmp(act, "maps"))
		return maps(more);
	if (!strcmp(act, "unshares"))
		return check(unshare(CLONE_NEWUTS) == 0);
	if (!strcmp(act, "enters"))
		return enters();
	if (!strcmp(act, "born_apart"))
		return born_apart();
	if (!strcmp(act, "chroots"))
		return check(chroot("/") == 0);
	if (!strcmp(act, "regains"))
		return regains();
	if (!strcmp(act, "regains_group"))
		return regains_group();
	if (!strcmp(act, "pivots"))
		return pivots();
	if (!strcmp(act, "keeps_capabilities"))
		return keeps_capabilities();
	if (!strcmp(act, "executes_memory"))
		return executes_memory();
	if (!strcmp(act, "writes_itself"))
		return writes_memory_of("/proc/self/mem", (unsigned long)word);
	if (!strcmp(act, "is_traced"))
		return traces(PTRACE_TRACEME, 0);
	if (!strcmp(act, "writes_nested"))
		return writes_nested();
	if (!strcmp(act, "storms"))
		return storms(atoi(more));
	if (!strcmp(act, "protects_often"))
		return protects_often(atoi(more));
	if (!strcmp(act, "writes_memory"))
		return writes_memory_of(more, place);
	if (!strcmp(act, "writes_directly"))
		return writes_directly(atoi(more), place);
	if (!strcmp(act, "attaches"))
		return traces(PTRACE_ATTACH, atoi(more));
	if (!strcmp(act, "seizes"))
		return traces(PTRACE_SEIZE, atoi(more));
	if (!strcmp(act, "attaches32"))
		return check(call32(26, PTRACE_ATTACH, atoi(more), 0) == 0);
	if (!strcmp(act, "waits"))
		return waits();
	return 254;
}
