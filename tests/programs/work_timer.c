/*
 * work_timer WORK COUNT
 *
 * For each line "N" of standard input: does WORK N times, COUNT units each, and writes N 64-bit integers to standard
 * output: the nanoseconds of CPU time of each, which other processes on the machine do not lengthen. Ends when the input ends. WORK is one of
 *   faults    touch COUNT pages of fresh memory, one after the other
 *   switches  hand a byte to another process and back, COUNT times; what this one pays for that
 *   calls     the system call that does least
 *   reads     read a byte of a device
 *   opens     open a file to be read, and close it
 *   opens-for-writing  the same of a device to be written
 *   mappings  map a page, and unmap it
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 100000
#define PAGE 4096

static int64_t times[MOST];
static int there[2], back[2];

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void die(const char *what)
{
	perror(what);
	exit(99);
}

static int64_t touch_pages(size_t count)
{
	char *memory = mmap(NULL, count * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int64_t started, taken;

	if (memory == MAP_FAILED || madvise(memory, count * PAGE, MADV_NOHUGEPAGE))
		die("memory");
	started = now();
	for (size_t i = 0; i < count; i++)
		((volatile char *)memory)[i * PAGE] = 1;
	taken = now() - started;
	munmap(memory, count * PAGE);
	return taken;
}

/* The other process. It ends with this one's end of the pipe. */
static void answer(void)
{
	char byte;

	close(there[1]);
	while (read(there[0], &byte, 1) == 1 && write(back[1], &byte, 1) == 1)
		;
	_exit(0);
}

static int64_t switch_about(size_t count)
{
	int64_t started = now();
	char byte = 0;

	for (size_t i = 0; i < count; i++)
		if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
			die("the other process");
	return now() - started;
}

static int64_t call(size_t count)
{
	int64_t started = now();

	for (size_t i = 0; i < count; i++)
		syscall(SYS_getppid);
	return now() - started;
}

static int64_t read_bytes(size_t count)
{
	int file = open("/dev/zero", O_RDONLY);
	int64_t started = now();
	char byte;

	for (size_t i = 0; i < count; i++)
		if (read(file, &byte, 1) != 1)
			die("read");
	started = now() - started;
	close(file);
	return started;
}

static int64_t open_files(size_t count, const char *path, int flags)
{
	int64_t started = now();
	int file;

	for (size_t i = 0; i < count; i++) {
		file = open(path, flags);
		if (file < 0 || close(file))
			die(path);
	}
	return now() - started;
}

static int64_t map_pages(size_t count)
{
	int64_t started = now();
	void *place;

	for (size_t i = 0; i < count; i++) {
		place = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (place == MAP_FAILED || munmap(place, PAGE))
			die("mmap");
	}
	return now() - started;
}

static int64_t work(const char *what, size_t units)
{
	if (!strcmp(what, "faults"))
		return touch_pages(units);
	if (!strcmp(what, "switches"))
		return switch_about(units);
	if (!strcmp(what, "calls"))
		return call(units);
	if (!strcmp(what, "reads"))
		return read_bytes(units);
	if (!strcmp(what, "opens"))
		return open_files(units, "/etc/passwd", O_RDONLY);
	if (!strcmp(what, "opens-for-writing"))
		return open_files(units, "/dev/null", O_WRONLY);
	if (!strcmp(what, "mappings"))
		return map_pages(units);
	return -1;
}

int main(int argc, char **argv)
{
	char line[32];
	size_t units;
	int switches, started = 0;

	if (argc != 3)
		return 2;
	switches = !strcmp(argv[1], "switches");
	units = strtoul(argv[2], NULL, 10);
	memset(times, 1, sizeof(times)); /* no page fault of ours is timed */
	if (pipe(there) || pipe(back))
		die("pipes");
	while (fgets(line, sizeof(line), stdin)) {
		size_t count = strtoul(line, NULL, 10);

		if (count == 0 || count > MOST)
			return 2;
		if (switches && !started++ && fork() == 0) /* only now: on the CPU where this one was put */
			answer();
		for (size_t i = 0; i < count; i++)
			if ((times[i] = work(argv[1], units)) < 0)
				return 2;
		for (size_t done = 0; done < count * sizeof(times[0]);) {
			ssize_t written = write(STDOUT_FILENO, (char *)times + done, count * sizeof(times[0]) - done);

			if (written < 0)
				die("results");
			done += written;
		}
	}
	return 0;
}
