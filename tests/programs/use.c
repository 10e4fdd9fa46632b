/* Uses what it is told to: MEGABYTES of memory, and MILLISECONDS of processor time in each of two threads; then ends with 3. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void *spin(void *milliseconds)
{
	struct timespec now;

	do
		clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	while (now.tv_sec * 1000L + now.tv_nsec / 1000000 < *(long *)milliseconds);
	return 0;
}

int main(int argc, char **argv)
{
	long milliseconds = argc > 2 ? atol(argv[2]) : 0;
	size_t bytes = argc > 1 ? (size_t)atol(argv[1]) << 20 : 0;
	char *memory = malloc(bytes + 1);
	pthread_t other;

	if (!memory || pthread_create(&other, 0, spin, &milliseconds))
		return 1;
	memset(memory, 1, bytes);
	spin(&milliseconds);
	pthread_join(other, 0);
	return memory[bytes / 2] == 1 ? 3 : 2;
}
