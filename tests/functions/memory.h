/* Looking through one's own memory, as a function does that wants what is not its own.
 *
 * There need be no /proc/self/maps: the kernel is asked page by page.
 */
#ifndef RFAAS_TESTS_MEMORY_H
#define RFAAS_TESTS_MEMORY_H

#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MIB (1UL << 20)
#define PAGE 4096UL

/* Whether a page can be read; also by several threads at once. */
static inline int is_mapped(uintptr_t page)
{
    unsigned char unused;
    static __thread int ends[2] = {-1, -1};
    if (mincore((void *)page, PAGE, &unused))
        return 0;
    /* Mapped, but readable? */
    if (ends[0] < 0 && pipe(ends))
        return 0;
    if (write(ends[1], (void *)page, 1) != 1)
        return 0;
    return read(ends[0], &unused, 1) == 1;
}

/* In how many pages of that memory the secret is. */
static inline long search(uintptr_t from, uintptr_t to, const char *secret, size_t size)
{
    long found = 0;
    for (uintptr_t page = from & ~(PAGE - 1); page < to; page += PAGE)
        if (is_mapped(page))
            found += memmem((void *)page, PAGE, secret, size) != NULL;
    return found;
}

/* Where a thread goes on that touched what cannot be. */
static __thread sigjmp_buf back;

static inline void go_back(int number)
{
    siglongjmp(back, number);
}

#endif
