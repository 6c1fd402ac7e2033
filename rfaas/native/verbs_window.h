/* What carries a client's calls over a NIC, for window.h; `carried_by` is a verbs_link. */
#ifndef RFAAS_VERBS_WINDOW_H
#define RFAAS_VERBS_WINDOW_H

#include "verbs.h"
#include "window.h"

extern const window_carrier verbs_carrier;

/* The bare exchange, for the benchmark: verbs_bench.c. */
int verbs_bare(window *w, const uint8_t *data, uint32_t size, uint32_t count, uint64_t *samples);
uint64_t verbs_stream(window *w, uint32_t size, uint32_t depth, uint32_t count);

#endif
