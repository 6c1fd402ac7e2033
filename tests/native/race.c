/* Two ends of one ring in one process, both going to sleep at every chance.
 *
 * Usage: race [client|worker|both|pipelined] CALLS SEED.  Whoever sleeps here sleeps for ever:
 * a wake-up that is lost hangs the program.  Prints how often each end slept. */
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lane.h"
#include "window.h"

#define SLOTS 4u
#define CELLS 4u
#define MODES 4

static const char *const modes[MODES] = {"client", "worker", "both", "pipelined"};
static uint64_t noise;

static uint32_t add_one(void *args, uint32_t size, void *res)
{
    uint32_t value;
    memcpy(&value, args, sizeof value);
    for (unsigned i = noise & 3; i > 0; i--) /* sometimes slower than the client */
        sched_yield();
    value++;
    memcpy(res, &value, sizeof value);
    return size;
}

static uint64_t next_noise(uint64_t *state) /* xorshift64 */
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

static void check(int good, const char *what)
{
    if (!good) {
        fprintf(stderr, "race: %s\n", what);
        exit(1);
    }
}

static int make_ring(void)
{
    int fd = memfd_create("race", MFD_CLOEXEC);
    uint64_t base = PAGE_BYTES * 2, stride = 2 * 2 * PAGE_BYTES; /* 8 cells are a page at most */
    ring_header header = {.magic = RING_MAGIC, .version = RING_VERSION, .slots = SLOTS,
                          .cells = CELLS, .slot_bytes = PAGE_BYTES, .first = UINT32_MAX - 1000};
    check(fd >= 0 && !ftruncate(fd, (off_t)(base + SLOTS * stride)) &&
              pwrite(fd, &header, sizeof header, 0) == sizeof header,
          "cannot make a ring");
    return fd;
}

int main(int argc, char **argv)
{
    int mode = 0;
    check(argc == 4, "three arguments");
    while (mode < MODES && strcmp(argv[1], modes[mode]))
        mode++;
    check(mode < MODES, "no such mode");
    const uint32_t calls = (uint32_t)strtoul(argv[2], NULL, 10);
    const int client_sleeps = mode != 1, worker_sleeps = mode != 0;
    const uint32_t at_once = mode == 3 ? SLOTS : 1;
    uint64_t state = noise = strtoull(argv[3], NULL, 10) * 0x9e3779b97f4a7c15u + 1;

    ticks_calibrate();
    ticks_calibrate();
    static ring_account account;
    static window client;
    const lane_function function = {(void *)add_one, 1};
    worker_lane worker = {.loop = lane_loop, .account = &account,
                          .functions = &function, .function_count = 1,
                          .hot_ticks = worker_sleeps ? 0 : HOT_ALWAYS, .cpu = -1};
    const char *what = "";
    int fd = make_ring();
    check(!ring_open(&worker.ring, fd, 0, &what) && !ring_guard(&worker.ring), what);
    check(!window_open(&client, fd, 0, &what), what);
    check(!lane_start(&worker), "cannot start a lane");

    uint32_t waits = 0;
    for (uint32_t done = 0; done < calls; done += at_once) {
        uint32_t slots[SLOTS], result;
        for (uint32_t i = 0; i < at_once; i++) {
            uint32_t value = done + i;
            slots[i] = window_take(&client);
            check(slots[i] != UINT32_MAX, "a slot is lost");
            window_put(&client, slots[i], 0, &value, sizeof value);
            if (next_noise(&state) & 1)
                window_ring(&client); /* a batch may ring once, or more often */
            noise = state;
            for (unsigned yields = state >> 8 & 3; yields > 0; yields--)
                sched_yield();
        }
        window_ring(&client);
        for (uint32_t i = 0; i < at_once; i++) {
            for (unsigned yields = next_noise(&state) & 3; yields > 0; yields--)
                sched_yield();
            while (window_state(&client, slots[i]) != CALL_DONE) {
                int rc = window_wait(&client, slots[i], client_sleeps ? 0 : UINT64_MAX, UINT64_MAX);
                check(rc == WAIT_DONE || rc == WAIT_AGAIN, "the worker answered nonsense");
                waits++;
            }
            memcpy(&result, client.calls[slots[i]].data, sizeof result);
            check(result == done + i + 1, "a result is crossed");
            window_drop(&client, slots[i]);
        }
    }
    lane_stop(&worker);
    check(account.calls >= calls, "calls were not counted");
    check(client.free_count == SLOTS, "a slot is lost");
    printf("%u waits, %llu wakeups of the worker\n", waits, (unsigned long long)account.wakeups);
    window_close(&client);
    ring_close(&worker.ring);
    return 0;
}
