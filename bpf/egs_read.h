/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How both objects, the gate and the drift programs, read the kernel's memory: by the offsets that the loader gives them.
 *
 * Compiled for the kernel alone. bcc rewrites map calls in the main text only, so there are none in here.
 */
#ifndef EGS_READ_H
#define EGS_READ_H

#define EGS_CTIME_NSEC_MASK 0x7fffffff /* bit 31 flags multigrain timestamps (6.13, 4e40eff0b573) */

static __always_inline u64 read_pointer(u64 base, u32 offset)
{
	u64 value = 0;

	/* A failed read yields NULL, and the next read from it fails and is noticed. */
	bpf_probe_read_kernel(&value, sizeof(value), (void *)(base + offset));
	return value;
}

static __always_inline int read_field(void *to, u32 size, u64 base, u32 offset)
{
	return bpf_probe_read_kernel(to, size, (void *)(base + offset));
}

/* The one notion of "the same file": shared by the gate and by the reader that measures for it. */
static __always_inline int read_file_id(struct egs_file_id *id, u64 file)
{
	u64 inode = read_pointer(file, OFF_file_f_inode);
	u64 super = read_pointer(inode, OFF_inode_i_sb);
	unsigned long number = 0;
	int failed = 0;

	failed |= read_field(&number, sizeof(number), inode, OFF_inode_i_ino);
	failed |= read_field(&id->size, sizeof(id->size), inode, OFF_inode_i_size);
	failed |= read_field(&id->ctime_sec, sizeof(id->ctime_sec), inode, OFF_inode_ctime_sec);
	failed |= read_field(&id->ctime_nsec, sizeof(id->ctime_nsec), inode, OFF_inode_ctime_nsec);
	failed |= read_field(&id->generation, sizeof(id->generation), inode, OFF_inode_i_generation);
	failed |= read_field(&id->device, sizeof(id->device), super, OFF_super_block_s_dev);
	id->inode = number;
	id->ctime_nsec &= EGS_CTIME_NSEC_MASK;
	id->pad = 0;
	return failed;
}

#endif
