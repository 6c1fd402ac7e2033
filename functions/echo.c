/* echo: returns its input.  The smallest function, and the one to measure with. */
#include "rfaas.h"

RFAAS_EXPORT uint32_t echo(void *args, uint32_t size, void *res)
{
    memcpy(res, args, size);
    return size;
}
