// SPDX-License-Identifier: Apache-2.0
/*
 * flee COUNT
 *
 * COUNT processes flee from whoever wants to end them: each forks and exits, its child does the same, for ever. No signal that can be
 * ignored ends them, and each is in a session of its own. Says "fled" once they are on their way.
 */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int count = argc == 2 ? atoi(argv[1]) : 1;

	for (int number = 1; number < 32; number++)
		signal(number, SIG_IGN);
	signal(SIGCHLD, SIG_IGN);
	while (--count > 0 && fork() > 0)
		;
	if (count == 0 && write(1, "fled\n", 5) != 5)
		return 1;
	for (;;) {
		if (fork() > 0)
			_exit(0);
		setsid();
	}
}
