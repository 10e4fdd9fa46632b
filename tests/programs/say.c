/*
 * A program whose first act is to write WORD to descriptor 9. No libc: nothing runs before it.
 *
 * Two builds with words of one length differ in those bytes alone: -DWORD='"good"', -DWORD='"evil"'. With
 * -DWAIT it writes WORD once for each byte that it reads from descriptor 8, and ends at its end.
 */
#if defined(__x86_64__)
#define SYS_READ 0
#define SYS_WRITE 1
#define SYS_EXIT_GROUP 231
static long call(long number, long a, const void *b, long c)
{
	long result;

	__asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}
#elif defined(__aarch64__)
#define SYS_READ 63
#define SYS_WRITE 64
#define SYS_EXIT_GROUP 94
static long call(long number, long a, const void *b, long c)
{
	register long x8 __asm__("x8") = number;
	register long x0 __asm__("x0") = a;
	register const void *x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;

	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	return x0;
}
#else
#error "teach this program the system calls of your architecture"
#endif

/* volatile: read from memory at every use, so that whoever changes the memory changes the word. */
static volatile char word[] = WORD;

void _start(void)
{
#ifdef WAIT
	char byte;

	while (call(SYS_READ, 8, &byte, 1) == 1)
		call(SYS_WRITE, 9, (const void *)word, sizeof(word) - 1);
#else
	call(SYS_WRITE, 9, (const void *)word, sizeof(word) - 1);
#endif
	call(SYS_EXIT_GROUP, 0, 0, 0);
	for (;;)
		;
}
