/* A library that writes to its executor, in its worker's name: FRAME, from a constructor, or
 * what it is called with.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "rfaas.h"

/* To every socket that there is; how many there are. */
static int speak_to_all(const void *data, size_t size)
{
    int found = 0, kind;
    for (int fd = 3; fd < 256; fd++) {
        socklen_t room = sizeof kind;
        if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &room))
            continue;
        found += write(fd, data, size) == (ssize_t)size;
    }
    return found;
}

#ifdef FRAME
static const unsigned char frame[] = {FRAME};

__attribute__((constructor)) static void speak_first(void)
{
    for (int left = TIMES; left; left--)
        speak_to_all(frame, sizeof frame);
    pause();
}
#endif

/* Once, and then it runs on. */
RFAAS_FUNCTION(speak)
{
    speak_to_all(call->args, call->size);
    for (volatile int i = 0;; i = !i)
        continue;
}

RFAAS_FUNCTION(speak_without_end)
{
    while (speak_to_all(call->args, call->size))
        continue;
    return 0;
}
