// SPDX-License-Identifier: Apache-2.0
/*
 * Does what constraints are for, as its first argument says, and prints what came of it: "done", or "errno N".
 * It prints the process id first where it goes on until somebody ends it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int said(long result)
{
	if (result < 0)
		printf("errno %d\n", errno);
	else
		puts("done");
	return 0;
}

static int forks(int count)
{
	int made = 0;

	for (; made < count; made++) {
		pid_t child = fork();

		if (child == 0) {
			pause();
			_exit(0);
		}
		if (child < 0)
			break;
	}
	printf("made %d errno %d\n", made, made < count ? errno : 0);
	fflush(stdout);
	kill(0, SIGKILL); /* it leads a process group of its own: its children, and itself */
	return 1;
}

/* Children in sessions of their own, which nobody waits for, and grandchildren. */
static _Noreturn int tree(int depth)
{
	setbuf(stdout, 0);
	printf("pid %d\n", getpid());
	for (int i = 0; i < depth; i++) {
		if (fork() == 0) {
			setsid();
			printf("pid %d\n", getpid());
		}
	}
	for (;;)
		pause();
}

static int memory(size_t mebibytes)
{
	for (size_t i = 0; i < mebibytes; i++) {
		char *page = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (page == MAP_FAILED)
			return said(-1);
		memset(page, 1, 1 << 20);
	}
	return said(0);
}

static int files(int count)
{
	for (int i = 0; i < count; i++)
		if (open("/dev/null", O_RDONLY) < 0)
			return said(-1);
	return said(0);
}

static int writes(const char *path, size_t bytes)
{
	static char block[4096];
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);

	for (size_t done = 0; done < bytes; done += sizeof(block))
		if (write(file, block, sizeof(block)) < 0)
			return said(-1);
	return said(0);
}

static _Noreturn int burns(void)
{
	volatile uint64_t number = 0;

	for (;;)
		number++;
}

static int raises(void)
{
	struct rlimit limit = { 4096, 4096 };

	return said(setrlimit(RLIMIT_NOFILE, &limit));
}

static int mounts(void)
{
	if (unshare(CLONE_NEWNS))
		return said(-1);
	return said(mount("none", "/tmp", "tmpfs", 0, 0));
}

static void *nothing(void *argument)
{
	return argument;
}

static int threads(void)
{
	pthread_t thread;
	int error = pthread_create(&thread, 0, nothing, 0);

	errno = error;
	return said(error ? -1 : pthread_join(thread, 0));
}

static int executes(char **argv)
{
	execv(argv[0], argv);
	said(-1);
	return 126;
}

/* Its child executes; what became of it. */
static int starts(char **argv)
{
	int status = 0;
	pid_t child = fork();

	if (child < 0)
		return said(-1);
	if (child == 0) {
		execv(argv[0], argv);
		_exit(126);
	}
	waitpid(child, &status, 0);
	printf("status %d\n", status);
	return 0;
}

static int shows_itself(void)
{
	static char line[256];
	FILE *status = fopen("/proc/self/status", "r");
	mode_t mask = umask(0);

	printf("umask %04o\nno_new_privs %d\n", mask, prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
	while (status && fgets(line, sizeof(line), status))
		if (!strncmp(line, "Cap", 3))
			fputs(line, stdout);
	return 0;
}

/* Starts it once for each line that it is given. */
static int asks(char **argv)
{
	setbuf(stdout, 0);
	while (getchar() != EOF)
		starts(argv);
	return 0;
}

/* Shows itself when there is a file of that name, or after ten seconds. */
static int waits(const char *name)
{
	for (int i = 0; i < 1000 && access(name, F_OK) != 0; i++)
		usleep(10000);
	return shows_itself();
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	long number = argc > 2 ? atol(argv[2]) : 0;

	if (!strcmp(what, "forks"))
		return forks(number);
	if (!strcmp(what, "tree"))
		return tree(number);
	if (!strcmp(what, "memory"))
		return memory(number);
	if (!strcmp(what, "files"))
		return files(number);
	if (!strcmp(what, "writes"))
		return writes(argv[3], number);
	if (!strcmp(what, "burns"))
		return burns();
	if (!strcmp(what, "raises"))
		return raises();
	if (!strcmp(what, "mounts"))
		return mounts();
	if (!strcmp(what, "threads"))
		return threads();
	if (!strcmp(what, "asks"))
		return asks(argv + 2);
	if (!strcmp(what, "waits"))
		return waits(argv[2]);
	if (!strcmp(what, "executes"))
		return executes(argv + 2);
	if (!strcmp(what, "aborts"))
		abort();
	if (!strcmp(what, "starts"))
		return starts(argv + 2);
	return shows_itself();
}
