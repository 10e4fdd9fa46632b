/* The smallest useful program: what is left of starting it is the kernel's work. */
int main(void)
{
	return 0;
}
