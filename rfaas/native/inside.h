/* What the keeper of a container and the worker inside tell each other; rfaas/sandbox/inside.py
 * has the same numbers in Python, and a test compares them.
 *
 * One SOCK_SEQPACKET socket.  inside -> keeper: HELLO, then LOADED or FAILED, then ENDED.
 * keeper -> inside: one inside_task with four descriptors (library, rings, accounting page,
 * table); after that nothing, and its end means that all is to end.
 */
#ifndef RFAAS_INSIDE_H
#define RFAAS_INSIDE_H

#include <stdint.h>

#define INSIDE_MAGIC 0x31495352u
#define INSIDE_FDS 4
#define INSIDE_TEXT_MAX 2048u /* of a message, and less than PIPE_BUF: it is written at once */
#define INSIDE_LIMITS 8u      /* entries of rlimit[] */

/* filter system calls; but for ioctl(2); but for that and the sockets of a network */
enum { INSIDE_FILTER = 1, INSIDE_DEVICES = 2, INSIDE_NETWORK = 4 };
enum { INSIDE_HELLO = 1, INSIDE_LOADED, INSIDE_FAILED, INSIDE_FAILED_LIBRARY, INSIDE_ENDED };

/* The table, a memory file: int32 cpus[lanes], then the environment, each "NAME=value" with a NUL,
 * then functions: each a byte for its ABI and its name with a NUL. */
typedef struct {
    uint32_t magic, lanes, functions, filter; /* INSIDE_FILTER, ... */
    int64_t hot_timeout_ms;
    uint64_t ring_bytes, table_bytes, environment_bytes;
    struct {
        uint32_t resource, is_set;
        uint64_t value;
    } limits[INSIDE_LIMITS];
} inside_task;

typedef struct {
    uint32_t kind;
    int32_t status;       /* ENDED: as of waitpid(2) */
    uint64_t steps_ns[3]; /* LOADED: confine, load, start_lanes */
    char text[INSIDE_TEXT_MAX];
} inside_message;

#endif
