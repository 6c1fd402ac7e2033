/* Functions that behave: one with state, and two over arrays of doubles. */
#include <stdatomic.h>

#include "rfaas.h"

/* Returns how many calls this process has had, this one included, 64 bits. */
RFAAS_EXPORT uint32_t count(void *args, uint32_t size, void *res)
{
    static _Atomic uint64_t calls;
    uint64_t value = atomic_fetch_add(&calls, 1) + 1;
    (void)args;
    (void)size;
    memcpy(res, &value, sizeof value);
    return sizeof value;
}

/* Returns the sum of an array of doubles, used where it lies; fails unless that is aligned. */
RFAAS_FUNCTION(sum_f64)
{
    if ((uintptr_t)call->args % RFAAS_ALIGNMENT != 0)
        return rfaas_fail(call, 1, "the input at %p is not aligned to %d bytes", call->args,
                          RFAAS_ALIGNMENT);
    if ((uintptr_t)call->res % RFAAS_ALIGNMENT != 0)
        return rfaas_fail(call, 2, "the output at %p is not aligned to %d bytes", call->res,
                          RFAAS_ALIGNMENT);
    if (call->size % sizeof(double) != 0)
        return rfaas_fail(call, 3, "%u bytes are not an array of doubles", call->size);
    const double *values = call->args;
    double sum = 0;
    for (uint32_t i = 0; i < call->size / sizeof *values; i++)
        sum += values[i];
    *(double *)call->res = sum;
    call->result_size = sizeof sum;
    return 0;
}

/* Returns an array of doubles, each times two. */
RFAAS_EXPORT uint32_t double_f64(void *args, uint32_t size, void *res)
{
    const double *in = __builtin_assume_aligned(args, RFAAS_ALIGNMENT);
    double *out = __builtin_assume_aligned(res, RFAAS_ALIGNMENT);
    for (uint32_t i = 0; i < size / sizeof *in; i++)
        out[i] = in[i] * 2;
    return size / sizeof *in * sizeof *in;
}
