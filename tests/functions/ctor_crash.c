/* Dies of SIGSEGV while it is loaded. */
#include "rfaas.h"

__attribute__((constructor)) static void crash(void)
{
    *(volatile int *)8 = 1;
}

RFAAS_EXPORT uint32_t never_called(void *args, uint32_t size, void *res)
{
    memcpy(res, args, size);
    return size;
}
