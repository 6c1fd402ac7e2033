/* What a worker sees of GPUs: variables, and device nodes that stand in for them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "rfaas.h"

/* The value of the variable that is its input; "unset". */
RFAAS_EXPORT uint32_t variable(void *args, uint32_t size, void *res)
{
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int)size, (const char *)args);
    const char *value = getenv(name);
    return (uint32_t)sprintf(res, "%s", value ? value : "unset");
}

/* Opens the device at that path for reading and writing and asks it something, as a driver's
 * library does: "works", or what failed. */
RFAAS_EXPORT uint32_t use(void *args, uint32_t size, void *res)
{
    char path[4096];
    int count;
    snprintf(path, sizeof path, "%.*s", (int)size, (const char *)args);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return (uint32_t)sprintf(res, "open: %s", strerrorname_np(errno));
    if (ioctl(fd, RNDGETENTCNT, &count)) /* of random(4), which stands in for a GPU */
        size = (uint32_t)sprintf(res, "ioctl: %s", strerrorname_np(errno));
    else
        size = (uint32_t)sprintf(res, "works");
    close(fd);
    return size;
}

/* Dies. */
RFAAS_EXPORT uint32_t die(void *args, uint32_t size, void *res)
{
    (void)args, (void)size, (void)res;
    abort();
}
