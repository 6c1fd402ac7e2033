/* Never ends being loaded. */
#include <unistd.h>

#include "rfaas.h"

__attribute__((constructor)) static void hang(void)
{
    for (;;)
        pause();
}

RFAAS_EXPORT uint32_t never_called(void *args, uint32_t size, void *res)
{
    memcpy(res, args, size);
    return size;
}
