/* The numbers of ring.h by their names in rfaas/proto/wire.py, for the test that compares both. */
#ifndef RFAAS_WIRE_H
#define RFAAS_WIRE_H

#include "ring.h"

typedef struct {
    const char *name; /* NULL after the last */
    uint64_t value;
} wire_number;

extern const wire_number wire_numbers[];

#endif
