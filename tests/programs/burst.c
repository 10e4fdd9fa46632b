/*
 * burst CGROUP_PROCS METHOD PARENTS TRIES TARGET OUTPUT
 *
 * Enters the cgroup, then PARENTS processes together start TARGET TRIES times by METHOD. OUTPUT is opened as
 * descriptor 9 for them. Prints how the children ended: "killed N denied N exited N other N"; denied: execve(2) failed
 * with EPERM.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DENIED 97 /* an exit code */

enum kind { KILLED, WAS_DENIED, EXITED, OTHER, KINDS };

static const char *target;
static int memfd = -1;
static char *arguments[] = { "first_write", NULL };
static char *environment[] = { NULL };

static void die(const char *what)
{
	perror(what);
	exit(99);
}

static void execute(void)
{
	if (memfd >= 0)
		syscall(SYS_execveat, memfd, "", arguments, environment, AT_EMPTY_PATH);
	else
		execve(target, arguments, environment);
	_exit(errno == EPERM ? DENIED : 98);
}

static void *execute_in_thread(void *unused)
{
	(void)unused;
	execute();
	return NULL;
}

static void *idle(void *unused)
{
	(void)unused;
	for (;;)
		pause();
	return NULL;
}

static void prepare_memfd(void)
{
	int file = open(target, O_RDONLY);
	struct stat status;

	memfd = memfd_create("image", MFD_CLOEXEC);
	if (file < 0 || memfd < 0 || fstat(file, &status) || sendfile(memfd, file, NULL, status.st_size) != status.st_size)
		die("memfd");
	close(file);
	/* A file that is open for writing cannot be executed (ETXTBSY): go on with a read-only descriptor. */
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
	file = open(path, O_RDONLY);
	close(memfd);
	memfd = file;
}

/* The child; 0: posix_spawn(3) says that its execve(2) failed with EPERM, and has waited for it. */
static pid_t start(const char *method)
{
	pid_t child;
	pthread_t thread;

	if (!strcmp(method, "posix_spawn")) {
		int error = posix_spawn(&child, target, NULL, NULL, arguments, environment);

		if (error && error != EPERM)
			die("posix_spawn");
		return error ? 0 : child;
	}
	child = strcmp(method, "vfork") ? fork() : vfork();
	if (child < 0)
		die("fork");
	if (child > 0)
		return child;
	if (!strcmp(method, "thread")) { /* the exec comes from a thread that is not the leader */
		pthread_create(&thread, NULL, execute_in_thread, NULL);
		for (;;)
			pause();
	}
	if (!strcmp(method, "leader")) /* the leader executes while another thread lives */
		pthread_create(&thread, NULL, idle, NULL);
	execute();
	return -1;
}

int main(int argc, char **argv)
{
	int totals[KINDS] = { 0 };
	int results[2];

	if (argc != 7)
		return 2;
	const char *method = argv[2];
	int parents = atoi(argv[3]), tries = atoi(argv[4]);
	target = argv[5];

	int output = open(argv[6], O_WRONLY | O_APPEND);
	if (output < 0 || dup2(output, 9) != 9)
		die("output");
	if (!strcmp(method, "memfd"))
		prepare_memfd();
	int procs = open(argv[1], O_WRONLY);
	if (procs < 0 || write(procs, "0", 1) != 1)
		die("cgroup");
	close(procs);
	if (pipe(results))
		die("pipe");
	for (int parent = 0; parent < parents; parent++) {
		if (fork())
			continue;
		int mine[KINDS] = { 0 };
		for (int i = parent; i < tries; i += parents) {
			int status = DENIED << 8;
			pid_t child = start(method);
			if (child && waitpid(child, &status, 0) != child)
				die("waitpid");
			if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
				mine[KILLED]++;
			else if (WIFEXITED(status) && WEXITSTATUS(status) == DENIED)
				mine[WAS_DENIED]++;
			else if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
				mine[EXITED]++;
			else
				mine[OTHER]++;
		}
		if (write(results[1], mine, sizeof(mine)) != sizeof(mine))
			die("results");
		_exit(0);
	}
	for (int parent = 0; parent < parents; parent++) {
		int one[KINDS];
		if (read(results[0], one, sizeof(one)) != sizeof(one))
			die("a parent died");
		for (int i = 0; i < KINDS; i++)
			totals[i] += one[i];
	}
	printf("killed %d denied %d exited %d other %d\n", totals[KILLED], totals[WAS_DENIED], totals[EXITED], totals[OTHER]);
	return 0;
}
