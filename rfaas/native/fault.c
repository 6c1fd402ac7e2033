/* A crash says where: one line on stderr, which the executor keeps, and then it dies as it would. */
#define _GNU_SOURCE
#include "lane.h"

#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STACK_BYTES 65536 /* MINSIGSTKSZ grows with the processor's registers */

static char *hex(char *to, uintptr_t value) {
    int digits = 1;
    while (digits < 16 && value >> (4 * digits))
        digits++;
    for (int i = digits - 1; i >= 0; i--)
        *to++ = "0123456789abcdef"[value >> (4 * i) & 15];
    return to;
}

/* Only what signal-safety(7) allows. */
static void crashed(int number, siginfo_t *info, void *unused) {
    (void)unused;
    static const char start[] = "\nrfaas worker: crashed at address 0x";
    char line[sizeof start + 20];
    memcpy(line, start, sizeof start - 1);
    char *end = hex(line + sizeof start - 1, (uintptr_t)info->si_addr);
    *end++ = '\n';
    ssize_t written = write(2, line, (size_t)(end - line));
    (void)written;
    raise(number); /* SA_RESETHAND: the default action */
}

void fault_report(void) {
    struct sigaction action = {.sa_sigaction = crashed,
                               .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND | SA_NODEFER};
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
}

void fault_stack(void) {
    stack_t stack = {.ss_size = STACK_BYTES};
    stack.ss_sp = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stack.ss_sp != MAP_FAILED)
        sigaltstack(&stack, NULL); /* without one, an overflow of the stack does not say where */
}

void fault_unstack(void) {
    const stack_t none = {.ss_flags = SS_DISABLE};
    stack_t stack;
    if (!sigaltstack(&none, &stack) && !(stack.ss_flags & SS_DISABLE))
        munmap(stack.ss_sp, stack.ss_size); /* SAFETY: made above, and no signal runs on it now */
}
