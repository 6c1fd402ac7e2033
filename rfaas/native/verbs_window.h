/* What carries a client's calls over a NIC, for window.h; `carried_by` is a verbs_link. */
#ifndef RFAAS_VERBS_WINDOW_H
#define RFAAS_VERBS_WINDOW_H

#include "verbs.h"
#include "window.h"

extern const window_carrier verbs_carrier;

#endif
