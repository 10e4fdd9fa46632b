/* Makes a call that most constraints refuse.
 *
 * usage: refuses TIMES [child]
 *
 * Calls chroot("/") so often and says how the last one ended. With `child`, a forked child does it, and its wait status is
 * said. With 0 it does it once, as soon as a line comes. Then it waits until its input ends.
 */

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void try(long times)
{
	int result = 0;

	for (long i = 0; i < times; i++)
		result = chroot("/");
	puts(result == 0 ? "done" : errno == EPERM ? "EPERM" : "another error");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	long times = argc > 1 ? atol(argv[1]) : 1;
	int status = 0;

	if (argc > 2) {
		pid_t child = fork();

		if (child == 0) {
			try(times);
			_exit(0);
		}
		if (child < 0 || waitpid(child, &status, 0) != child)
			return 1;
		printf("signal %d\n", WTERMSIG(status));
		return 0;
	}
	if (times == 0 && getchar() != EOF)
		times = 1;
	try(times);
	while (getchar() != EOF)
		continue;
	return 0;
}
