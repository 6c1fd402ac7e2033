/* Functions that do what a function must not do, or that fail on purpose. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "rfaas.h"

/* Most functions here take one number: the first four bytes of the input, 0 without. */
static uint32_t number(const void *args, uint32_t size)
{
    uint32_t value = 0;
    if (size >= sizeof value)
        memcpy(&value, args, sizeof value);
    return value;
}

#define PLAIN(name)                                               \
    RFAAS_EXPORT uint32_t name(                                   \
        __attribute__((unused)) void *args, __attribute__((unused)) uint32_t size, \
        __attribute__((unused)) void *res)

PLAIN(crash_segv)
{
    *(volatile int *)8 = 1;
    return 0;
}

PLAIN(crash_abort)
{
    abort();
}

PLAIN(call_exit)
{
    exit(3);
}

PLAIN(call_pthread_exit)
{
    pthread_exit(NULL);
}

PLAIN(loop_forever)
{
    for (volatile int i = 0;; i = !i)
        continue;
}

/* Writes `number` bytes from the beginning of the output on, with no regard for its size. */
PLAIN(write_past_output)
{
    uint32_t bytes = number(args, size);
    memset(res, 0xab, bytes);
    return bytes;
}

/* Writes nothing, and reports `number` bytes. */
PLAIN(report_too_much)
{
    return number(args, size);
}

/* Sleeps `number` milliseconds. */
PLAIN(sleep_ms)
{
    uint32_t ms = number(args, size);
    struct timespec left = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L};
    while (nanosleep(&left, &left) != 0)
        continue;
    return 0;
}

PLAIN(empty_output)
{
    return 0;
}

/* Leaves a child behind that sleeps for `number` seconds; returns its pid, or -1, 32 bits. */
PLAIN(fork_child)
{
    uint32_t seconds = number(args, size);
    int32_t pid = fork();
    if (pid == 0) {
        sleep(seconds);
        _exit(0);
    }
    memcpy(res, &pid, sizeof pid);
    return sizeof pid;
}

PLAIN(print_noise)
{
    printf("noise of a function on stdout\n");
    fflush(stdout);
    fprintf(stderr, "noise of a function on stderr\n");
    return 0;
}

/* Allocates and fills `number` MiB, and keeps them; returns how many it got, 32 bits. */
PLAIN(leak_memory)
{
    uint32_t wanted = number(args, size);
    uint32_t got = 0;
    for (; got < wanted; got++) {
        void *volatile block = malloc(1 << 20);
        if (block == NULL)
            break;
        memset(block, 0xab, 1 << 20);
    }
    memcpy(res, &got, sizeof got);
    return sizeof got;
}

/* Answers for itself, as the first call of a lane in its slot 0: the response cell, `number`
 * bytes before the input, gets a slot that no lane has. */
PLAIN(lie_in_the_ring)
{
    volatile uint32_t *cell = (volatile uint32_t *)((char *)args - number(args, size));
    cell[1] = 0x0fff0000;
    __atomic_store_n(&cell[0], 1, __ATOMIC_RELEASE);
    for (;;)
        sleep(1);
}

/* Fails with status 7, and its input as the text. */
RFAAS_FUNCTION(fail_with_text)
{
    return rfaas_fail(call, 7, "%.*s", (int)call->size, (const char *)call->args);
}

/* Returns `number` as its status, without a text. */
RFAAS_FUNCTION(return_status)
{
    return (int32_t)number(call->args, call->size);
}

/* Returns its capacity, 32 bits. */
RFAAS_FUNCTION(capacity_of)
{
    memcpy(call->res, &call->capacity, sizeof call->capacity);
    call->result_size = sizeof call->capacity;
    return 0;
}

/* Writes nothing, and reports `number` bytes. */
RFAAS_FUNCTION(set_result_size)
{
    call->result_size = number(call->args, call->size);
    return 0;
}

/* Fails with status 1, and claims a text of `number` bytes. */
RFAAS_FUNCTION(set_text_size)
{
    call->text_size = number(call->args, call->size);
    return 1;
}

/* Overwrites every field of the call with ones, and succeeds. */
RFAAS_FUNCTION(scribble_call)
{
    memset(call, 0xff, sizeof *call);
    return 0;
}
