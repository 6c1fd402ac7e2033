/* What the contract of transports calls: all of the tests' functions in one library. */
#include "hostile.c"

#include "counter.c"
#include "echo.c"

/* Takes two descriptors: says on the first that it has begun, and waits for a byte on the
 * second.  Returns its input. */
PLAIN(hold)
{
    int32_t fds[2];
    char byte = '.';
    memcpy(fds, args, sizeof fds);
    if (write(fds[0], &byte, 1) != 1 || read(fds[1], &byte, 1) != 1)
        abort();
    memcpy(res, args, size);
    return size;
}

/* Returns `number` bytes of its lowest byte. */
PLAIN(fill)
{
    uint32_t bytes = number(args, size);
    memset(res, bytes & 0xff, bytes);
    return bytes;
}
