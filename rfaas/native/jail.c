#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
#define CAPABILITY_MAX 63
#define STATUS_FD 3
#define MAX_ARGUMENTS (8UL << 20) /* arguments and environment: a quarter of the stack, execve(2) */

/* What older headers lack; linux/mount.h, linux/landlock.h, asm-generic/unistd.h */
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#define INTO_CGROUP 0x200000000ULL /* CLONE_INTO_CGROUP, clone(2) */
#define ATTR_RDONLY 0x1
#define ATTR_NOSUID 0x2
#define ATTR_NODEV 0x4
#define ACCESS_EXECUTE (1ULL << 0)
#define ACCESS_WRITE_FILE (1ULL << 1)
#define ACCESS_READ_FILE (1ULL << 2)
#define ACCESS_READ_DIR (1ULL << 3)
#define ACCESS_IOCTL_DEV (1ULL << 15) /* from ABI 5 on */
#define RULE_PATH_BENEATH 1

extern char **environ;

struct mount_attributes {
    uint64_t set, clear, propagation, userns_fd;
};

struct rule_path_beneath {
    uint64_t allowed;
    int32_t parent_fd;
} __attribute__((packed));

static int failed(const char **what, const char *step) {
    *what = step;
    return -1;
}

struct clone_arguments { /* clone_args of linux/sched.h, Linux 5.7 */
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup;
};

pid_t jail_clone(unsigned long namespaces, int group) {
    const struct clone_arguments born = {
        .flags = namespaces | INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)group};
    if (group >= 0)
        return (pid_t)syscall(SYS_clone3, &born, sizeof born);
#if defined(__x86_64__) || defined(__aarch64__)
    return (pid_t)syscall(SYS_clone, namespaces | SIGCHLD, 0, 0, 0, 0);
#else
    (void)namespaces;
    errno = ENOSYS;
    return -1;
#endif
}

pid_t jail_fork(int group) {
    struct clone_arguments born = {
        .flags = INTO_CGROUP | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID,
        .exit_signal = SIGCHLD,
        .cgroup = (uint64_t)group,
    };
    int *tid = NULL;
    void *robust = NULL;
    size_t size = 0;
    /* Where glibc has the thread's number, which it does not ask the kernel for: fork(3) has the
     * kernel write it as well.  Another libc may have something else there. */
    if (prctl(PR_GET_TID_ADDRESS, &tid) || !tid || *tid != (int)syscall(SYS_gettid)) {
        errno = ENOSYS;
        return -1;
    }
    born.child_tid = (uint64_t)(uintptr_t)tid;
    const int has_list = !syscall(SYS_get_robust_list, 0, &robust, &size);
    const pid_t pid = (pid_t)syscall(SYS_clone3, &born, sizeof born);
    if (!pid && has_list)
        syscall(SYS_set_robust_list, robust, size); /* the kernel hands none down */
    return pid;
}

void jail_keep(pid_t worker, int fd) {
    int status = 0;
    if (fd != STATUS_FD)
        dup2(fd, STATUS_FD);
    if (syscall(SYS_close_range, STATUS_FD + 1, ~0U, 0))
        for (int other = STATUS_FD + 1; other < 4096; other++)
            close(other);
    for (;;) {
        const pid_t gone = waitpid(-1, &status, 0);
        if (gone == worker || (gone < 0 && errno == ECHILD))
            break;
    }
    ssize_t written = write(STATUS_FD, &status, sizeof status);
    (void)written;
    _exit(0);
}

/* Every folder of `path` but the last name, beneath the folder `root`. */
static int make_parents(int root, char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        const int error = mkdirat(root, path + 1, 0755) && errno != EEXIST;
        *slash = '/';
        if (error)
            return -1;
    }
    return 0;
}

static int show(int root, const char *place, const char *path, const char *source) {
    char target[PATH_MAX], own[PATH_MAX];
    struct stat found;
    if (stat(source, &found))
        return -1;
    if (snprintf(own, sizeof own, "%s", path) >= (int)sizeof own ||
        snprintf(target, sizeof target, "%s%s", place, path) >= (int)sizeof target) {
        errno = ENAMETOOLONG;
        return -1;
    }
    if (make_parents(root, own))
        return -1;
    if (S_ISDIR(found.st_mode)) {
        if (mkdirat(root, path + 1, 0755) && errno != EEXIST)
            return -1;
    } else {
        const int fd = openat(root, path + 1, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
        if (fd < 0)
            return -1;
        close(fd);
    }
    return mount(source, target, NULL, MS_BIND | (S_ISDIR(found.st_mode) ? MS_REC : 0), NULL);
}

/* Whether one of the paths lies in that folder, and would be hidden by what is mounted there. */
static int hides(const char *place, const char *const *paths, size_t count) {
    const size_t length = strlen(place);
    for (size_t i = 0; i < count; i++)
        if (!strncmp(paths[i], place, length) && paths[i][length] == '/')
            return 1;
    return 0;
}

int jail_root(const char *const *paths, size_t count, size_t devices, const char **what) {
    /* Any folder will do to put the new root on: nobody else sees it. */
    static const char *const places[] = {"/tmp", "/run", "/var", "/mnt", "/etc"};
    struct mount_attributes attributes = {.set = ATTR_RDONLY | ATTR_NOSUID | ATTR_NODEV};
    const char *place = NULL;
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL))
        return failed(what, "make the mounts private");
    for (size_t i = 0; i < COUNT_OF(places) && !place; i++)
        if (!hides(places[i], paths, count) &&
            !mount("none", places[i], "tmpfs", MS_NOSUID | MS_NODEV, "size=256k,nr_inodes=512,mode=755"))
            place = places[i];
    if (!place)
        return failed(what, "mount the new root");
    const int root = open(place, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0)
        return failed(what, "open the new root");
    for (size_t i = 0; i < count; i++)
        if (show(root, place, paths[i], paths[i])) {
            close(root);
            return failed(what, paths[i]);
        }
    if (show(root, place, "/proc/self/fd", "/proc/self/fd")) {
        close(root);
        return failed(what, "show its own descriptors");
    }
    close(root);
    if (chdir(place) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/"))
        return failed(what, "change the root");
    if (syscall(SYS_mount_setattr, AT_FDCWD, "/", 0x8000 /* AT_RECURSIVE */, &attributes,
                sizeof attributes))
        return failed(what, "make the root read-only");
    const struct mount_attributes device = {.clear = ATTR_NODEV};
    for (size_t i = count - devices; i < count; i++)
        if (syscall(SYS_mount_setattr, AT_FDCWD, paths[i], 0, &device, sizeof device))
            return failed(what, paths[i]);
    return 0;
}

void jail_forget(void) {
    char line[4096];
    unsigned long start = 0, end = 0;
    for (char **one = environ; one && *one; one++)
        explicit_bzero(*one, strlen(*one));
    if (environ)
        *environ = NULL;
    /* From the arguments' start to the environment's end; fields 48 to 51, proc_pid_stat(5). */
    const int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
    const ssize_t size = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    line[size > 0 ? size : 0] = 0;
    const char *field = strrchr(line, ')'); /* the name before may hold anything */
    for (int number = 2; field && number < 51; number++) {
        field = strchr(field + 1, ' ');
        if (field && number == 47)
            start = strtoul(field, NULL, 10);
    }
    end = field ? strtoul(field, NULL, 10) : 0;
    /* SAFETY: the kernel put these bytes on our stack, beyond every frame; no code uses them. */
    if (start && end > start && end - start < MAX_ARGUMENTS)
        explicit_bzero((void *)start, end - start);
}

int jail_drop(const char **what) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    const struct __user_cap_data_struct none[2] = {{0}};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return failed(what, "refuse new privileges");
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    for (int one = 0; one <= CAPABILITY_MAX; one++)
        prctl(PR_CAPBSET_DROP, one, 0, 0, 0); /* EINVAL past the kernel's last, EPERM without any */
    if (syscall(SYS_capset, &header, none))
        return failed(what, "drop all capabilities");
    return 0;
}

int jail_landlock_abi(void) {
    return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, 1 /* ..._CREATE_RULESET_VERSION */);
}

static int allow(int set, const char *path, uint64_t access) {
    struct rule_path_beneath rule = {.allowed = access,
                                     .parent_fd = open(path, O_PATH | O_CLOEXEC)};
    if (rule.parent_fd < 0)
        return -1;
    const int error = (int)syscall(SYS_landlock_add_rule, set, RULE_PATH_BENEATH, &rule, 0);
    const int number = errno;
    close(rule.parent_fd);
    errno = number;
    return error;
}

/* The lowest bits, so many: rights are numbered as they came to be. */
#define FIRST(count) ((1ULL << (count)) - 1)

struct jail_rights jail_landlock_rights(int abi) {
    static const struct jail_rights known[] = {
        {0, 0, 0, 0},
        {FIRST(13), 0, 0, 8},                 /* Linux 5.13 */
        {FIRST(14), 0, 0, 8},                 /* 5.19: refer */
        {FIRST(15), 0, 0, 8},                 /* 6.2: truncate */
        {FIRST(15), FIRST(2), 0, 16},         /* 6.7: bind and connect TCP */
        {FIRST(16), FIRST(2), 0, 16},         /* 6.10: ioctl of devices */
        {FIRST(16), FIRST(2), FIRST(2), 24},  /* 6.12: abstract sockets, signals */
    };                                        /* 7, 6.15: what is logged, and nothing else */
    const int newest = (int)COUNT_OF(known) - 1;
    return known[abi < 0 ? 0 : abi > newest ? newest : abi];
}

int jail_landlock(const char *const *devices, size_t count, const char **what) {
    const int abi = jail_landlock_abi();
    if (abi < 1)
        return failed(what, "ask for Landlock");
    /* All that it knows is handled, and so refused where no rule allows it.  SAFETY: the kernel
     * reads the first `bytes` of it, which are the fields of its own record in the same order. */
    const struct jail_rights rules = jail_landlock_rights(abi);
    const int set = (int)syscall(SYS_landlock_create_ruleset, &rules, rules.bytes, 0);
    if (set < 0)
        return failed(what, "make a Landlock ruleset");
    int error = allow(set, "/", ACCESS_EXECUTE | ACCESS_READ_FILE | ACCESS_READ_DIR);
    for (size_t i = 0; i < count && !error; i++)
        error = allow(set, devices[i],
                      (ACCESS_READ_FILE | ACCESS_WRITE_FILE | ACCESS_IOCTL_DEV) & rules.files);
    error = error || syscall(SYS_landlock_restrict_self, set, 0);
    const int number = errno;
    close(set);
    errno = number;
    return error ? failed(what, "enter the Landlock ruleset") : 0;
}
