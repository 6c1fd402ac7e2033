/* Shutting a process in, by the kernel alone: namespaces, an empty root, Landlock, seccomp.
 *
 * Each function does one part for good and returns 0, or -1 with errno and the name of the
 * step in `what`.  Which parts there must be is decided in rfaas/sandbox, not here.
 */
#ifndef RFAAS_JAIL_H
#define RFAAS_JAIL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* fork(2) into new namespaces: CLONE_NEW*, less CLONE_NEWTIME; and, unless `group` is -1, born in
 * the control group of version 2 whose folder that descriptor is (Linux 5.7).  The child is a copy
 * for native code and for one more fork(3), nothing else: glibc does not know of it. */
pid_t jail_clone(unsigned long namespaces, int group);

/* fork(3) of a process with one thread, born in such a group.  Handlers of pthread_atfork(3) are
 * not called.  ENOSYS: this libc or kernel cannot. */
pid_t jail_fork(int group);

/* The init of a process namespace, for ever: reap until `worker` has ended, write its wait
 * status to `fd` and exit, which ends all that is left in here. */
void jail_keep(pid_t worker, int fd) __attribute__((noreturn));

/* Replace the root by an empty, read-only one that has, at their own paths, the `count` files and
 * folders of `paths`, and the calling process's own descriptors at /proc/self/fd.  Devices do not
 * work in it, but for the last `devices` paths. */
int jail_root(const char *const *paths, size_t count, size_t devices, const char **what);

/* Overwrite the environment and the arguments, where the kernel and libc have them. */
void jail_forget(void);

/* No capability, now or after any exec, and no new privileges. */
int jail_drop(const char **what);

/* The ABI of the kernel's Landlock, or -1. */
int jail_landlock_abi(void);

/* What Landlock of an ABI knows to refuse, in files, of TCP, and of what lies outside; `bytes` are
 * those of its ruleset, struct landlock_ruleset_attr. */
struct jail_rights {
    uint64_t files, net, scoped;
    size_t bytes;
};

/* Of an ABI that is newer than we know: what the newest known to us refuses; of 0 or less: none. */
struct jail_rights jail_landlock_rights(int abi);

/* Reading and executing beneath / alone, and writing to and controlling the `count` `devices`; no
 * TCP port, no socket or signal outside. */
int jail_landlock(const char *const *devices, size_t count, const char **what);

/* The filter of system calls; `opens` adds to them, either ioctl(2), without which no device
 * works, and JAIL_NETWORK sockets of IP and of those netlinks that name routes and NICs. */
enum { JAIL_DEVICES = 1, JAIL_NETWORK = 2 };
int jail_seccomp(unsigned opens, const char **what);

#endif
