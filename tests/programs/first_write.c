/* A program whose first act is a write of one byte to descriptor 9. No libc: nothing runs before it. */
void _start(void)
{
	static const char byte = 'x';
	long result;

#if defined(__x86_64__)
	__asm__ volatile("syscall" : "=a"(result) : "a"(1), "D"(9), "S"(&byte), "d"(1) : "rcx", "r11", "memory");
	__asm__ volatile("syscall" : "=a"(result) : "a"(231), "D"(0) : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = 64;
	register long x0 __asm__("x0") = 9;
	register const char *x1 __asm__("x1") = &byte;
	register long x2 __asm__("x2") = 1;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2) : "memory");
	x8 = 94;
	x0 = 0;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8) : "memory");
#else
#error "teach this program to write on your architecture"
#endif
	for (;;)
		;
}
