/*
 * get_code WAY[:PATH] ...
 *
 * Tries to get executable code in each way, the file at PATH being where it comes from, and prints a line for each:
 * "got it", "refused" (EPERM), or the error that shows that the way does not work at all. "wait" says "waiting", and
 * goes on after a line of input.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/shm.h>
#include <unistd.h>

#define PAGE 4096

static int open_file(const char *path)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0) {
		perror(path);
		exit(99);
	}
	return file;
}

static int map(int file, int protection, int flags)
{
	return mmap(0, PAGE, protection, flags, file, 0) == MAP_FAILED ? -1 : 0;
}

static int protect(int file, int flags, int write)
{
	char *page = mmap(0, PAGE, PROT_READ | (write ? PROT_WRITE : 0), flags, file, 0);

	if (page == MAP_FAILED)
		exit(98);
	if (write)
		page[0] = (char)0xc3;
	return mprotect(page, PAGE, PROT_READ | PROT_EXEC);
}

static int memory_file(const char *path)
{
	int file = open_file(path), copy = memfd_create("code", MFD_CLOEXEC);
	char page[PAGE];

	if (copy < 0 || read(file, page, PAGE) < 1 || write(copy, page, PAGE) != PAGE)
		exit(97);
	return copy;
}

static int attach_shared_memory(void)
{
	int segment = shmget(IPC_PRIVATE, PAGE, 0700);
	void *page = shmat(segment, 0, SHM_EXEC);
	int error = errno;

	shmctl(segment, IPC_RMID, 0);
	errno = error;
	return page == (void *)-1 ? -1 : 0;
}

/* Memory of brk(2), which no hook is asked about: executed, as the answer of sbrk(3) says nothing. */
static int use_heap(void)
{
	if (personality(READ_IMPLIES_EXEC) < 0)
		return -1;
	char *page = sbrk(PAGE);
	page[0] = (char)0xc3;
	((void (*)(void))page)();
	return 0;
}

static int try(const char *way, const char *path)
{
	int anonymous = MAP_PRIVATE | MAP_ANONYMOUS;

	if (!strcmp(way, "map"))
		return map(open_file(path), PROT_READ | PROT_EXEC, MAP_PRIVATE);
	if (!strcmp(way, "map-shared"))
		return map(open_file(path), PROT_READ | PROT_EXEC, MAP_SHARED);
	if (!strcmp(way, "map-writable"))
		return map(open_file(path), PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE);
	if (!strcmp(way, "protect"))
		return protect(open_file(path), MAP_PRIVATE, 0);
	if (!strcmp(way, "write-protect"))
		return protect(open_file(path), MAP_PRIVATE, 1);
	if (!strcmp(way, "memfd"))
		return map(memory_file(path), PROT_READ | PROT_EXEC, MAP_PRIVATE);
	if (!strcmp(way, "shm"))
		return attach_shared_memory();
	if (!strcmp(way, "anonymous"))
		return map(-1, PROT_READ | PROT_EXEC, anonymous);
	if (!strcmp(way, "write-anonymous"))
		return protect(-1, anonymous, 1);
	if (!strcmp(way, "heap"))
		return use_heap();
	fprintf(stderr, "no such way: %s\n", way);
	exit(2);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, 0, _IOLBF, 0);
	for (int i = 1; i < argc; i++) {
		char *path = strchr(argv[i], ':');

		if (path)
			*path++ = 0;
		if (!strcmp(argv[i], "wait")) {
			puts("waiting");
			while (getchar() != '\n')
				;
			continue;
		}
		errno = 0;
		puts(try(argv[i], path) == 0 ? "got it" : errno == EPERM ? "refused" : strerror(errno));
	}
	return 0;
}
