/* What one lease leaves in memory, and what the next one finds there.
 *
 * The pattern comes as the input, each byte plus one: it is looked for in all memory, and must
 * not be found in what was asked, nor on the stack of who looks.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/mman.h>

#include "memory.h"
#include "rfaas.h"

#define PATTERN_BYTES 32
#define INPUT_BYTES 4096 /* the pattern and zeroes: less would lie in the cell that announces it */
#define BLOCKS 64
#define BLOCK_BYTES 65536
#define STACK_BYTES 262144

extern char **environ;

static char data[BLOCK_BYTES]; /* of the library itself */
static char *blocks[BLOCKS];

/* By address, for a compiler must not see that nobody reads it any more. */
static void (*volatile fill)(char *, size_t, const char *);

static void fill_with(char *at, size_t size, const char *shifted)
{
    for (size_t i = 0; i < size; i++)
        at[i] = (char)(shifted[i % PATTERN_BYTES] - 1);
}

static __attribute__((noinline)) void fill_stack(const char *shifted)
{
    char local[STACK_BYTES];
    fill(local, sizeof local, shifted);
}

/* Fills both halves of its slot, its heap (some of which it frees), its data and its stack. */
RFAAS_FUNCTION(leave)
{
    char shifted[PATTERN_BYTES];
    if (call->size != INPUT_BYTES)
        return rfaas_fail(call, 1, "no pattern");
    memcpy(shifted, call->args, sizeof shifted);
    fill = fill_with;
    for (int i = 0; i < BLOCKS; i++) {
        if (!blocks[i] && !(blocks[i] = malloc(BLOCK_BYTES)))
            return rfaas_fail(call, 1, "no memory");
        fill(blocks[i], BLOCK_BYTES, shifted);
        if (i % 2) {
            free(blocks[i]);
            blocks[i] = NULL;
        }
    }
    fill(data, sizeof data, shifted);
    fill_stack(shifted);
    fill((char *)(uintptr_t)call->args, call->capacity, shifted);
    fill(call->res, call->capacity, shifted);
    call->result_size = 0;
    return 0;
}

static int is_pattern(const char *at, const char *shifted)
{
    for (size_t i = 0; i < PATTERN_BYTES; i++)
        if (at[i] != (char)(shifted[i] - 1))
            return 0;
    return 1;
}

/* In how many pages of that memory the pattern begins. */
static long pages_with(uintptr_t from, uintptr_t to, const char *shifted)
{
    const char first = (char)(shifted[0] - 1);
    long found = 0;
    for (uintptr_t page = from & ~(PAGE - 1); page < to; page += PAGE) {
        if (!is_mapped(page))
            continue;
        const char *at = (const char *)page, *end = at + PAGE - PATTERN_BYTES;
        while (at <= end && (at = memchr(at, first, (size_t)(end - at) + 1))) {
            if (is_pattern(at, shifted)) {
                found++;
                break;
            }
            at++;
        }
    }
    return found;
}

/* In how many pages it is found: of its own slot, of the heap, of all that is mapped near the
 * code (stacks, rings, libraries, large blocks), of the first thread's stack.  64 bits each. */
RFAAS_FUNCTION(look)
{
    char shifted[PATTERN_BYTES];
    int64_t found[4];
    char *fresh[BLOCKS];
    if (call->size != INPUT_BYTES)
        return rfaas_fail(call, 1, "no pattern");
    memcpy(shifted, call->args, sizeof shifted);
    const uintptr_t args = (uintptr_t)call->args, res = (uintptr_t)call->res;
    found[0] = pages_with(args, args + call->capacity, shifted) +
               pages_with(res, res + call->capacity, shifted);
    for (int i = 0; i < BLOCKS; i++) /* what was freed, if it is anywhere */
        fresh[i] = malloc(BLOCK_BYTES);
    const uintptr_t heap = (uintptr_t)sbrk(0), code = (uintptr_t)&memfd_create;
    const uintptr_t stack = (uintptr_t)environ;
    found[1] = pages_with(heap - 64 * MIB, heap, shifted);
    found[2] = pages_with(code - 512 * MIB, code + 64 * MIB, shifted);
    found[3] = pages_with(stack - 4 * MIB, stack + 4 * MIB, shifted);
    for (int i = 0; i < BLOCKS; i++)
        free(fresh[i]);
    memcpy(call->res, found, sizeof found);
    call->result_size = sizeof found;
    return 0;
}
