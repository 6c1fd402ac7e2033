/* Functions that would not let others have their turn on a processor. */
#include <pthread.h>
#include <stdio.h>
#include <sys/file.h>
#include <unistd.h>

#include "rfaas.h"

#define FDS_MAX 64

static void *keep_turns(void *unused)
{
    for (;;)
        for (int fd = 3; fd < FDS_MAX; fd++)
            flock(fd, LOCK_EX | LOCK_NB);
    return unused;
}

/* Takes each lock that it can find again and again, in a thread of its own. */
RFAAS_EXPORT uint32_t hog(void *args, uint32_t size, void *res)
{
    pthread_t thread;
    (void)args, (void)size, (void)res;
    pthread_create(&thread, NULL, keep_turns, NULL);
    return 0;
}

/* Unlocks each lock that it can find; returns how many files it had, 32 bits. */
RFAAS_EXPORT uint32_t unlock(void *args, uint32_t size, void *res)
{
    uint32_t count = 0;
    (void)args, (void)size;
    for (int fd = 3; fd < FDS_MAX; fd++)
        count += flock(fd, LOCK_UN) == 0;
    memcpy(res, &count, sizeof count);
    return sizeof count;
}

RFAAS_EXPORT uint32_t pid(void *args, uint32_t size, void *res)
{
    const uint32_t own = (uint32_t)getpid();
    (void)args, (void)size;
    memcpy(res, &own, sizeof own);
    return sizeof own;
}
