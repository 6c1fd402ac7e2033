/* Calls a function that no library has: loading fails if all names are bound at once. */
#include "rfaas.h"

uint32_t rfaas_test_defined_nowhere(uint32_t size);

RFAAS_EXPORT uint32_t call_unresolved(void *args, uint32_t size, void *res)
{
    (void)args;
    (void)res;
    return rfaas_test_defined_nowhere(size);
}
