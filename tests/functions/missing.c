/* The library that needs_missing.c is linked with, and that is then deleted. */
#include "rfaas.h"

RFAAS_EXPORT uint32_t rfaas_test_missing(uint32_t size)
{
    return size;
}
