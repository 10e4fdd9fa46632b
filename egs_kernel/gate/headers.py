"""The header folder that bcc compiles against, instead of the kernel's.

Production hosts rarely have kernel headers, and those they have may not match the running kernel. The gate
needs none: it names no kernel struct. bcc still insists on a kernel source folder; this is the whole of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_TYPES: Final = """\
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64;
typedef u8 __u8; typedef u16 __u16; typedef u32 __u32; typedef u64 __u64;
typedef s8 __s8; typedef s16 __s16; typedef s32 __s32; typedef s64 __s64;
typedef u16 __be16; typedef u32 __be32; typedef u64 __be64;
typedef u16 __le16; typedef u32 __le32; typedef u64 __le64;
typedef u32 __wsum; typedef u16 __sum16;
typedef u64 __attribute__((aligned(8))) __aligned_u64;
typedef _Bool bool; typedef int pid_t; typedef unsigned long size_t; typedef unsigned long uintptr_t;
"""

_KCONFIG: Final = """\
#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE 4096
#define LINUX_VERSION_CODE 0
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define __always_inline inline __attribute__((always_inline))
"""

_HEADERS: Final = {
    "linux/types.h": _TYPES,
    "linux/kconfig.h": _KCONFIG,
    "linux/bpf_common.h": "#define BPF_MAXINSNS 4096\n",
    "linux/version.h": "",
    "linux/log2.h": "",
    "asm/page.h": "",
    "asm/ptrace.h": "",
    "uapi/linux/bpf.h": "",
    "uapi/linux/if_packet.h": "",
}


def write_headers(folder: Path) -> None:
    """Write the headers below `folder`/include; `folder` is what BCC_KERNEL_SOURCE names."""
    for name, content in _HEADERS.items():
        path = folder / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
