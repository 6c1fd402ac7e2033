/* Functions that say when they have begun, so that a test can act in mid-call. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rfaas.h"

/* Writes its process id to the FIFO at the path in its input, which blocks until somebody
 * reads there; -1 if there is none. */
static int say_begun(const void *args, uint32_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%.*s", (int)size, (const char *)args);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0)
        dprintf(fd, "%d\n", (int)getpid());
    return fd;
}

/* Returns its input once somebody opens the FIFO "PATH.go" for writing. */
RFAAS_EXPORT uint32_t hold(void *args, uint32_t size, void *res)
{
    int begun = say_begun(args, size);
    char path[4096];
    snprintf(path, sizeof path, "%.*s.go", (int)size, (const char *)args);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    close(fd);
    close(begun);
    memcpy(res, args, size);
    return size;
}

/* Says that it has begun, then spins for ever. */
RFAAS_EXPORT uint32_t spin(void *args, uint32_t size, void *res)
{
    (void)res;
    say_begun(args, size);
    for (volatile int i = 0;; i = !i)
        continue;
}

/* Forks a child, and that one another, each in a session of its own; both keep the FIFO open
 * and sleep.  Returns the first one's pid, 32 bits. */
RFAAS_EXPORT uint32_t hold_in_children(void *args, uint32_t size, void *res)
{
    int begun = say_begun(args, size);
    int32_t pid = fork();
    if (pid == 0) {
        setsid();
        if (fork() == 0)
            setsid();
        for (;;)
            pause();
    }
    close(begun);
    memcpy(res, &pid, sizeof pid);
    return sizeof pid;
}

static void leave(int begun, int leads)
{
    int32_t pid = fork();
    if (pid == 0) {
        if (leads)
            setsid();
        if (fork() == 0)
            for (;;)
                pause();
        _exit(0);
    }
    close(begun);
    waitpid(pid, NULL, 0);
}

/* Leaves an orphan behind, in the worker's session, that keeps the FIFO open and sleeps. */
RFAAS_EXPORT uint32_t leave_orphan(void *args, uint32_t size, void *res)
{
    (void)res;
    leave(say_begun(args, size), 0);
    return 0;
}

/* The same in another session. */
RFAAS_EXPORT uint32_t leave_daemon(void *args, uint32_t size, void *res)
{
    (void)res;
    leave(say_begun(args, size), 1);
    return 0;
}

RFAAS_EXPORT uint32_t copy(void *args, uint32_t size, void *res)
{
    memcpy(res, args, size);
    return size;
}
