/* Attacks on a lease's own bill: a part of attacks.c, which has grown long. */
#ifndef ATTACK_BILL_H
#define ATTACK_BILL_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#include "attack.h"
#include "memory.h"

static int forged; /* what a page of counts is overwritten with */

static void *forger(void *page)
{
    for (;; usleep(200))
        memset(page, forged, 64);
    return NULL;
}

static uint64_t now_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The page on which its lane counts: the second word is 0, no call failed; the seventh when this
 * call began. */
static uint64_t *find_counts(uintptr_t near)
{
    uintptr_t here = near & ~4095UL;
    for (uintptr_t at = here - 256 * MIB; at < here + 256 * MIB; at += 4096) {
        uint64_t *words = (uint64_t *)at;
        if (is_mapped(at) && words[1] == 0 && words[0] < 1000 &&
            now_ns(CLOCK_MONOTONIC) - words[6] < 10000000000u)
            return words;
    }
    return NULL;
}

/* That page is overwritten from now on; then 300 ms of processor time are used.
 * `text` is "zero" or "ones". */
ATTACK(forge_counts)
{
    uint64_t *page = find_counts((uintptr_t)to->text);
    forged = strcmp(text, "ones") ? 0 : 0xff;
    outcome(to, "page", page ? 0 : -1);
    if (!page)
        return;
    pthread_t thread;
    errno = pthread_create(&thread, NULL, forger, page);
    outcome(to, "thread", errno ? -1 : 0);
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) < 300000000u)
        memset(page, forged, 64);
}

static uint64_t *volatile counted; /* the page of the lease that is served now */
static void *lasting_forger(void *unused)
{
    for (;; usleep(200))
        if (counted && !sigsetjmp(back, 1))
            memset(counted, forged, 48); /* not since when it is busy: it wants to be kept */
    return unused;
}

/* The same, by a thread that lives through it when the page is taken away, and goes on with what
 * comes there or where the next call finds it: in the next lease, say. */
ATTACK(forge_always)
{
    static int started;
    pthread_t thread;
    uint64_t *page = find_counts((uintptr_t)to->text);
    counted = page ? page : counted;
    forged = strcmp(text, "ones") ? 0 : 0xff;
    outcome(to, "page", counted ? 0 : -1);
    if (!started) {
        signal(SIGSEGV, go_back);
        signal(SIGBUS, go_back);
        started = !pthread_create(&thread, NULL, lasting_forger, NULL);
    }
    outcome(to, "thread", started ? 0 : -1);
    const uint64_t begun = now_ns(CLOCK_THREAD_CPUTIME_ID);
    while (now_ns(CLOCK_THREAD_CPUTIME_ID) - begun < 300000000u)
        continue;
}

#endif
