/* rfaas.h: what a function must look like to be called by rFaaS, in C and C++.
 *
 * A library is an ELF shared object.  Each function that it exports can be
 * invoked by its name, in one of two forms.
 *
 * The plain form is the ABI that rFaaS published:
 *
 *     RFAAS_EXPORT uint32_t echo(void *args, uint32_t size, void *res)
 *     {
 *         memcpy(res, args, size);
 *         return size;                          // bytes of result
 *     }
 *
 * The richer form also knows how much room there is, and can fail with a text:
 *
 *     RFAAS_FUNCTION(halve)
 *     {
 *         if (call->size % 8 != 0)
 *             return rfaas_fail(call, 1, "%u bytes are no array of doubles", call->size);
 *         const double *in = call->args;        // in C++: static_cast<const double *>
 *         double *out = call->res;
 *         for (uint32_t i = 0; i < call->size / 8; i++)
 *             out[i] = in[i] / 2;
 *         call->result_size = call->size;
 *         return 0;
 *     }
 *
 * Memory.  Input and output are parts of the memory that the network writes
 * and reads, used in place.  Both begin on a 64-byte boundary, so they can be
 * arrays of any type.  Both are lent until the function returns: keep no
 * pointer into them.  Do not write into the input, and take nothing from the
 * bytes after it.  The output holds what an earlier call left there.
 *
 * Room.  The output has room for at least as many bytes as the input area has,
 * `capacity` bytes in the richer form.  After it stands a page that can be
 * neither read nor written: a function that runs over dies there by SIGSEGV,
 * and its caller gets "worker crashed".  A function that needs more room than
 * there is writes nothing past `capacity` and returns (plain form) or sets
 * `result_size` to (richer form) the size that it needs: its caller gets
 * "output too large" with that number.
 *
 * Threads.  A lease of N cores runs functions on N lanes, which are threads of
 * one process, and the same function may run on several at once.  Whatever is
 * static is shared between them, and stays from one call to the next for as
 * long as the worker lives, which is no longer than the lease.
 *
 * Leaving.  A function ends by returning.  exit(), abort() and a fatal signal
 * end the worker and fail the calls on all of its lanes; pthread_exit(),
 * longjmp() out of the function and a C++ exception that leaves it are as bad.
 *
 * Names.  A name that begins with an underscore is reserved to the compiler
 * (C11, 7.1.3) and not callable; that goes for mangled C++ names too, so C++
 * functions need the macros below, or extern "C".
 *
 * Compile with:  cc -O3 -fPIC -shared -fvisibility=hidden -o libmine.so mine.c
 */
#ifndef RFAAS_H
#define RFAAS_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define RFAAS_ABI 2               /* of the richer form; the plain form is 1 */
#define RFAAS_ALIGNMENT 64        /* bytes; of the input and of the output */
#define RFAAS_TEXT_BYTES_MAX 512  /* of the text of rfaas_fail */

#ifdef __cplusplus
#define RFAAS_EXTERN extern "C"
#else
#define RFAAS_EXTERN extern
#endif

/* Exports a function under its plain name, also from -fvisibility=hidden. */
#define RFAAS_EXPORT RFAAS_EXTERN __attribute__((visibility("default")))

/* One invocation in the richer form.  The worker fills in the first four with
 * the last two 0.  This layout is the ABI: it does not change within RFAAS_ABI. */
typedef struct rfaas_call {
    const void *args;     /* input, lent until the function returns */
    void *res;            /* output, lent likewise */
    uint32_t size;        /* bytes of input; may be 0 */
    uint32_t capacity;    /* bytes that fit into res */
    uint32_t result_size; /* set by the function: bytes of output */
    uint32_t text_size;   /* set by rfaas_fail: bytes of the text that stands in res */
} rfaas_call;

/* Returns 0, or a positive status: then the caller gets it with the text in
 * res, `text_size` bytes of UTF-8, and `result_size` is not looked at. */
typedef int32_t (*rfaas_function)(rfaas_call *call);

/* The plain form: returns the bytes of output. */
typedef uint32_t (*rfaas_plain_function)(void *args, uint32_t size, void *res);

/* RFAAS_FUNCTION(name) { body } defines a function in the richer form, with
 * `rfaas_call *call` in scope.  The object rfaas_abi2_<name> beside it tells
 * the worker so: a linker's version script must export it too. */
#define RFAAS_FUNCTION(name)                            \
    RFAAS_EXPORT const uint32_t rfaas_abi2_##name;      \
    const uint32_t rfaas_abi2_##name = RFAAS_ABI;       \
    RFAAS_EXPORT int32_t name(rfaas_call *call);        \
    RFAAS_EXPORT int32_t name(rfaas_call *call)

/* Ends an invocation as failed: `return rfaas_fail(call, 2, "no row %u", row);`
 *
 * The text, UTF-8 and at most RFAAS_TEXT_BYTES_MAX bytes (what is longer is
 * cut), replaces what stands in `call->res`; arguments may point into it.
 * Returns `status` made positive, for 0 would mean success: 0 becomes 1, and
 * -n, as in `-EINVAL`, becomes n. */
__attribute__((format(printf, 3, 4), cold))
static inline int32_t rfaas_fail(rfaas_call *call, int32_t status, const char *format, ...)
{
    char text[RFAAS_TEXT_BYTES_MAX + 2]; /* one character more than is kept, and the NUL */
    va_list arguments;
    va_start(arguments, format);
    int written = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);

    size_t size = written < 0 ? 0 : (size_t)written;
    size_t room = RFAAS_TEXT_BYTES_MAX;
    if (room > call->capacity)
        room = call->capacity;
    if (size > room) { /* cut before a character, not within: 10xxxxxx continues one */
        size = room;
        while (size > 0 && ((unsigned char)text[size] & 0xc0) == 0x80)
            size--;
    }
    if (size > 0)
        memcpy(call->res, text, size);
    call->text_size = (uint32_t)size;
    call->result_size = 0;
    if (status == INT32_MIN)
        return INT32_MAX;
    return status > 0 ? status : status < 0 ? -status : 1;
}

#ifdef __cplusplus
#define RFAAS_ASSERT(condition) static_assert(condition, "rFaaS: ABI of 64-bit machines")
#else
#define RFAAS_ASSERT(condition) _Static_assert(condition, "rFaaS: ABI of 64-bit machines")
#endif
RFAAS_ASSERT(sizeof(void *) == 8);
RFAAS_ASSERT(offsetof(rfaas_call, args) == 0);
RFAAS_ASSERT(offsetof(rfaas_call, res) == 8);
RFAAS_ASSERT(offsetof(rfaas_call, size) == 16);
RFAAS_ASSERT(offsetof(rfaas_call, capacity) == 20);
RFAAS_ASSERT(offsetof(rfaas_call, result_size) == 24);
RFAAS_ASSERT(offsetof(rfaas_call, text_size) == 28);
RFAAS_ASSERT(sizeof(rfaas_call) == 32);
#undef RFAAS_ASSERT

#endif
