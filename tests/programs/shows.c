/*
 * What a program sees of how it was started, one line each: pid, argv, signal dispositions that Python changes, the
 * blocked mask, open descriptors, and the environment.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

extern char **environ;

static void show_signal(const char *name, int number)
{
	struct sigaction action;
	sigset_t blocked;

	sigaction(number, 0, &action);
	sigprocmask(SIG_BLOCK, 0, &blocked);
	printf("%s %s %s\n", name, action.sa_handler == SIG_DFL ? "default" : "ignored",
	       sigismember(&blocked, number) ? "blocked" : "open");
}

int main(int argc, char **argv)
{
	printf("pid %d\n", getpid());
	for (int i = 0; i < argc; i++)
		printf("arg %s\n", argv[i]);
	show_signal("INT", SIGINT);
	show_signal("PIPE", SIGPIPE);
	show_signal("XFSZ", SIGXFSZ);
	show_signal("USR1", SIGUSR1);
	for (int i = 0; i < 1024; i++)
		if (fcntl(i, F_GETFD) >= 0)
			printf("fd %d\n", i);
	for (char **entry = environ; *entry; entry++)
		printf("env %s\n", *entry);
	return 7;
}
