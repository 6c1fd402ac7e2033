/* Uses a NIC by the libraries of rdma-core, which are found as it is called: no header is needed. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rfaas.h"

#define PS_TCP 0x0106 /* RDMA_PS_TCP, rdma/rdma_cma.h */
#define BYTES 65536

/* As who connects does: an event channel, an identifier bound to the address that is its input,
 * memory that the NIC may reach.  "works", or what failed. */
RFAAS_EXPORT uint32_t use_nic(void *args, uint32_t size, void *res)
{
    char address[64];
    snprintf(address, sizeof address, "%.*s", (int)size, (const char *)args);
    void *cm = dlopen("librdmacm.so.1", RTLD_NOW), *verbs = dlopen("libibverbs.so.1", RTLD_NOW);
    if (!cm || !verbs)
        return (uint32_t)sprintf(res, "dlopen: %s", dlerror());
    void *(*create_channel)(void) = (void *(*)(void))dlsym(cm, "rdma_create_event_channel");
    int (*create_id)(void *, void **, void *, int) =
        (int (*)(void *, void **, void *, int))dlsym(cm, "rdma_create_id");
    int (*bind_addr)(void *, struct sockaddr *) =
        (int (*)(void *, struct sockaddr *))dlsym(cm, "rdma_bind_addr");
    void *(*alloc_pd)(void *) = (void *(*)(void *))dlsym(verbs, "ibv_alloc_pd");
    void *(*reg_mr)(void *, void *, size_t, int) =
        (void *(*)(void *, void *, size_t, int))dlsym(verbs, "ibv_reg_mr");
    struct sockaddr_in own = {.sin_family = AF_INET};
    void *channel, *id = NULL, *domain;
    const char *what;
    inet_pton(AF_INET, address, &own.sin_addr);
    if (what = "rdma_create_event_channel", !(channel = create_channel()))
        goto failed;
    if (what = "rdma_create_id", create_id(channel, &id, NULL, PS_TCP))
        goto failed;
    if (what = "rdma_bind_addr", bind_addr(id, (struct sockaddr *)&own))
        goto failed;
    if (what = "ibv_alloc_pd", !(domain = alloc_pd(*(void **)id))) /* its first member: verbs */
        goto failed;
    if (what = "ibv_reg_mr", !reg_mr(domain, malloc(BYTES), BYTES, 1))
        goto failed;
    return (uint32_t)sprintf(res, "works");
failed:
    return (uint32_t)sprintf(res, "%s: %s", what, strerrorname_np(errno));
}
