/* Needs libmissing.so, which build_needs_missing() deletes: loading fails. */
#include "rfaas.h"

uint32_t rfaas_test_missing(uint32_t size);

RFAAS_EXPORT uint32_t call_missing(void *args, uint32_t size, void *res)
{
    (void)args;
    (void)res;
    return rfaas_test_missing(size);
}
