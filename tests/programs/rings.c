// SPDX-License-Identifier: Apache-2.0
/*
 * Writes into the memory of another process, by its /proc/PID/mem and an address, with no call but those of io_uring:
 * the ring opens the file, and the ring writes. Exits with 0 when it succeeded, and with the error's number when not.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct io_uring_params params;
static char *ring;
static struct io_uring_sqe *entries;
static int descriptor;

static void *map(size_t size, off_t what)
{
	return mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, descriptor, what);
}

/* One entry is submitted, and waited for; its result, negative as the kernel has it. */
static int does(const struct io_uring_sqe *entry)
{
	unsigned int *tail = (unsigned int *)(ring + params.sq_off.tail);
	unsigned int *head = (unsigned int *)(ring + params.cq_off.head);
	struct io_uring_cqe *results = (struct io_uring_cqe *)(ring + params.cq_off.cqes);
	unsigned int place = *tail & *(unsigned int *)(ring + params.sq_off.ring_mask);
	int result;

	entries[place] = *entry;
	((unsigned int *)(ring + params.sq_off.array))[place] = place;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, descriptor, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
		return -errno;
	result = results[*head & *(unsigned int *)(ring + params.cq_off.ring_mask)].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return result;
}

int main(int argc, char **argv)
{
	struct io_uring_sqe opens = { .opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .open_flags = O_RDWR };
	struct io_uring_sqe writes = { .opcode = IORING_OP_WRITE, .addr = (unsigned long)"rewritten", .len = 9 };
	size_t size;
	int result;

	if (argc != 3)
		return EINVAL;
	descriptor = syscall(SYS_io_uring_setup, 4, &params);
	if (descriptor < 0)
		return errno;
	if (!(params.features & IORING_FEAT_SINGLE_MMAP))
		return ENOSYS;
	size = params.sq_off.array + params.sq_entries * sizeof(unsigned int);
	if (size < params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe))
		size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	ring = map(size, IORING_OFF_SQ_RING);
	entries = map(params.sq_entries * sizeof(struct io_uring_sqe), IORING_OFF_SQES);
	if (ring == MAP_FAILED || (void *)entries == MAP_FAILED)
		return errno;
	opens.addr = (unsigned long)argv[1];
	result = does(&opens);
	if (result < 0)
		return -result;
	writes.fd = result;
	writes.off = strtoul(argv[2], 0, 0);
	result = does(&writes);
	return result < 0 ? -result : result != 9;
}
