/*
 * spawn_timer METHOD TARGET [ARGUMENT ...]
 *
 * For each line "N" of standard input: starts TARGET N times by METHOD (fork or vfork), one after the other, and
 * writes N 64-bit integers to standard output: the nanoseconds from before the fork to after the wait.
 * Ends when the input ends, or with a message when a child did not exit with 0. METHOD `refused` is fork, and every
 * child has to fail instead: its exec, or it dies of it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 100000

static int64_t times[MOST];

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC_RAW, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(99);
}

static void run_once(const char *method, char **command)
{
	int status;
	pid_t child = method[0] == 'v' ? vfork() : fork();

	if (child == 0) {
		execv(command[0], command);
		_exit(98);
	}
	if (child < 0 || waitpid(child, &status, 0) != child)
		die("fork or wait");
	if ((status != 0) != (method[0] == 'r')) {
		fprintf(stderr, "spawn_timer: %s ended with wait status %#x\n", command[0], status);
		exit(97);
	}
}

/* The children get /dev/null: what they print must not reach the results, and no terminal slows them down. */
static void set_streams_aside(FILE **input, int *output)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);
	int kept = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 10);

	*output = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 10);
	*input = fdopen(kept, "r");
	if (null < 0 || !*input || *output < 0 || dup2(null, STDIN_FILENO) < 0 || dup2(null, STDOUT_FILENO) < 0)
		die("standard streams");
}

int main(int argc, char **argv)
{
	char line[32];
	FILE *input;
	int output;

	if (argc < 3 || (strcmp(argv[1], "fork") && strcmp(argv[1], "vfork") && strcmp(argv[1], "refused")))
		return 2;
	set_streams_aside(&input, &output);
	memset(times, 1, sizeof(times)); /* no page fault of ours is timed */
	while (fgets(line, sizeof(line), input)) {
		size_t count = strtoul(line, NULL, 10);

		if (count == 0 || count > MOST)
			return 2;
		for (size_t i = 0; i < count; i++) {
			int64_t started = now();

			run_once(argv[1], argv + 2);
			times[i] = now() - started;
		}
		for (size_t done = 0; done < count * sizeof(times[0]);) {
			ssize_t written = write(output, (char *)times + done, count * sizeof(times[0]) - done);

			if (written < 0)
				die("results");
			done += written;
		}
	}
	return 0;
}
