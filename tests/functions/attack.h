/* An attack: a function that says line by line what the system answered, "ptrace: EPERM". */
#ifndef RFAAS_TESTS_ATTACK_H
#define RFAAS_TESTS_ATTACK_H

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "rfaas.h"

typedef struct {
    char *text;
    size_t size, capacity;
} report;

static void say(report *to, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    int size = vsnprintf(to->text + to->size, to->capacity - to->size, format, values);
    va_end(values);
    if (size > 0)
        to->size += (size_t)size < to->capacity - to->size ? (size_t)size : 0;
}

/* "what: EPERM", or "what: done". */
static void outcome(report *to, const char *what, long result)
{
    const char *name = result >= 0 ? "done" : strerrorname_np(errno);
    say(to, "%s: %s\n", what, name ? name : "?");
}

#define ATTACK(name)                                                                      \
    static void name##_try(report *to, const char *text);                                 \
    RFAAS_FUNCTION(name)                                                                  \
    {                                                                                     \
        char text[4096] = "";                                                             \
        report to = {call->res, 0, call->capacity};                                       \
        memcpy(text, call->args, call->size < 4095 ? call->size : 4095);                  \
        name##_try(&to, text);                                                            \
        call->result_size = (uint32_t)to.size;                                            \
        return 0;                                                                         \
    }                                                                                     \
    static void name##_try(__attribute__((unused)) report *to,                            \
                           __attribute__((unused)) const char *text)

#endif
