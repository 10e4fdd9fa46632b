// SPDX-License-Identifier: Apache-2.0
/*
 * again PROGRAM
 *
 * Writes a byte when it runs, waits for one of standard input, then executes PROGRAM in one child after the other until one of them does not run to its end with
 * status 0. Then it writes two 64-bit integers to standard output: when the last that ran had been started, and when the
 * first that did not was waited for, CLOCK_BOOTTIME nanoseconds; and begins anew. Ends when the input ends.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_BOOTTIME, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	char byte = 'r';

	if (argc != 2 || write(1, &byte, 1) != 1)
		return 99;
	while (read(0, &byte, 1) == 1) {
		int64_t found[2] = {0, 0};

		for (;;) {
			int64_t started = now();
			int status;
			pid_t child = vfork();

			if (child == 0) {
				execl(argv[1], argv[1], (char *)NULL);
				_exit(126);
			}
			if (child < 0 || waitpid(child, &status, 0) != child)
				return 98;
			if (status != 0)
				break;
			found[0] = started;
		}
		found[1] = now();
		if (write(1, found, sizeof(found)) != sizeof(found))
			return 97;
	}
	return 0;
}
