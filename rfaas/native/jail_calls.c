/* Which system calls a function may make: a list, compiled into a BPF program as it is loaded.
 *
 * What is not in the list answers EPERM; what the list does not even know, and clone3, whose flags
 * a filter cannot see, answers ENOSYS: libc then takes the older call.
 */
#define _GNU_SOURCE
#include "jail.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#define COUNT_OF(array) (sizeof(array) / sizeof *(array))
#define NAMESPACES 0x7e020000u /* CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET: clone(2) */
#define PROGRAM_MAX 512
#ifndef PR_SCHED_CORE
#define PR_SCHED_CORE 62 /* linux/prctl.h of Linux 5.14 */
#endif
#define CALLS_KNOWN 463 /* asm-generic/unistd.h of Linux 6.10; newer ones do not exist in here */

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

static const uint16_t allowed[] = {
    /* memory */
    SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_mincore, SYS_msync,
    SYS_mlock, SYS_munlock, SYS_mlock2, SYS_membarrier, SYS_mbind, SYS_get_mempolicy,
    SYS_set_mempolicy,
#ifdef SYS_pkey_alloc
    SYS_pkey_alloc, SYS_pkey_free, SYS_pkey_mprotect,
#endif
    /* threads and processes; clone is looked at below */
    SYS_exit, SYS_exit_group, SYS_wait4, SYS_waitid, SYS_futex, SYS_set_tid_address,
    SYS_set_robust_list, SYS_get_robust_list, SYS_rseq, SYS_gettid, SYS_getpid, SYS_getppid,
    SYS_getpgid, SYS_getsid, SYS_setpgid, SYS_setsid, SYS_sched_yield,
    SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_sched_getparam, SYS_sched_getscheduler,
    SYS_sched_get_priority_max, SYS_sched_get_priority_min, SYS_getpriority, SYS_getcpu,
    SYS_getrlimit, SYS_setrlimit, SYS_prlimit64, SYS_getrusage, SYS_times, SYS_restart_syscall,
    /* signals: they end at this process namespace */
    SYS_kill, SYS_tkill, SYS_tgkill, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
    SYS_rt_sigpending, SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_rt_sigqueueinfo,
    SYS_rt_tgsigqueueinfo, SYS_sigaltstack,
    /* time */
    SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep, SYS_nanosleep, SYS_gettimeofday,
    SYS_getitimer, SYS_setitimer, SYS_timer_create, SYS_timer_delete, SYS_timer_settime,
    SYS_timer_gettime, SYS_timer_getoverrun, SYS_timerfd_create, SYS_timerfd_settime,
    SYS_timerfd_gettime,
    /* files: there are libraries, read-only */
    SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev,
    SYS_preadv2, SYS_pwritev2, SYS_lseek, SYS_close, SYS_dup, SYS_dup3, SYS_openat, SYS_readlinkat,
    SYS_newfstatat, SYS_fstat, SYS_statfs, SYS_fstatfs, SYS_statx, SYS_faccessat, SYS_getdents64,
    SYS_getcwd, SYS_chdir, SYS_fchdir, SYS_flock, SYS_ftruncate, SYS_fallocate,
    SYS_fsync, SYS_fdatasync, SYS_umask, SYS_fadvise64, SYS_readahead, SYS_copy_file_range,
    SYS_sendfile, SYS_splice, SYS_tee,
    SYS_unlinkat, SYS_mkdirat, SYS_renameat2, SYS_symlinkat, SYS_linkat, SYS_truncate,
#ifdef SYS_close_range
    SYS_close_range,
#endif
#ifdef SYS_faccessat2
    SYS_faccessat2,
#endif
    /* waiting, and talking within the lease; socket(2) and connect(2) are not here */
    SYS_ppoll, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait, SYS_eventfd2,
    SYS_pipe2, SYS_signalfd4, SYS_sendto, SYS_recvfrom, SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg,
    SYS_recvmmsg, SYS_shutdown, SYS_getsockopt, SYS_setsockopt, SYS_getsockname, SYS_getpeername,
    /* who and where */
    SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups,
    SYS_uname, SYS_sysinfo, SYS_getrandom, SYS_capget,
#ifdef __x86_64__
    SYS_arch_prctl, SYS_open, SYS_stat, SYS_lstat, SYS_access, SYS_readlink, SYS_poll, SYS_select,
    SYS_pipe, SYS_dup2, SYS_fork, SYS_vfork, SYS_getpgrp, SYS_alarm, SYS_pause, SYS_epoll_create,
    SYS_epoll_wait, SYS_eventfd, SYS_signalfd, SYS_time, SYS_getdents, SYS_unlink, SYS_mkdir,
    SYS_rmdir, SYS_rename, SYS_creat, SYS_link, SYS_symlink, SYS_renameat,
#endif
};

/* Beside socket(2) of some families, which is looked at below. */
static const uint16_t network_calls[] = {SYS_connect, SYS_bind, SYS_listen, SYS_accept4,
#ifdef SYS_accept
                                         SYS_accept,
#endif
};

static const uint32_t refused_commands[] = {F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ};
static const uint32_t terminal_requests[] = {TCGETS, FIONREAD, FIONBIO, FIOCLEX};

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define ANSWER(value) BPF_STMT(BPF_RET | BPF_K, value)
#define REFUSED(number) (SECCOMP_RET_ERRNO | (number))
/* The next `skip` instructions are for this value alone. */
#define UNLESS(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)

int jail_seccomp(unsigned opens, const char **what) {
#ifndef ARCHITECTURE
    errno = ENOSYS;
    *what = "filter system calls of this architecture";
    return -1;
#else
    static struct sock_filter program[PROGRAM_MAX]; /* static: it is too large for small stacks */
    size_t n = 0;
#define PUT(...) program[n++] = (struct sock_filter)__VA_ARGS__
    PUT(LOAD(arch));
    PUT(UNLESS(ARCHITECTURE, 1));
    PUT(BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0));
    PUT(ANSWER(SECCOMP_RET_KILL_PROCESS));
    PUT(LOAD(nr));
#ifdef SYS_clone3
    PUT(UNLESS(SYS_clone3, 1));
    PUT(ANSWER(REFUSED(ENOSYS)));
#endif
    /* Newer than this list, and on x86-64 the numbers of x32. */
    PUT(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, CALLS_KNOWN, 0, 1));
    PUT(ANSWER(REFUSED(ENOSYS)));
    PUT(UNLESS(SYS_clone, 4));
    PUT(LOAD(args[0]));
    PUT(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, NAMESPACES, 0, 1));
    PUT(ANSWER(REFUSED(EPERM)));
    PUT(ANSWER(SECCOMP_RET_ALLOW));
    PUT(UNLESS(SYS_socketpair, 4));
    PUT(LOAD(args[0]));
    PUT(UNLESS(AF_UNIX, 1));
    PUT(ANSWER(SECCOMP_RET_ALLOW));
    PUT(ANSWER(REFUSED(EPERM)));
    /* What reaches others: pipes' room is counted by user, see pipe(7); files may be theirs, too. */
    PUT(UNLESS(SYS_fcntl, 2 + 2 * COUNT_OF(refused_commands)));
    PUT(LOAD(args[1]));
    for (size_t i = 0; i < COUNT_OF(refused_commands); i++) {
        PUT(UNLESS(refused_commands[i], 1));
        PUT(ANSWER(REFUSED(EPERM)));
    }
    PUT(ANSWER(SECCOMP_RET_ALLOW));
    PUT(UNLESS(SYS_prctl, 4));
    PUT(LOAD(args[0]));
    PUT(UNLESS(PR_SCHED_CORE, 1)); /* it would have the sibling's lease wait */
    PUT(ANSWER(REFUSED(EPERM)));
    PUT(ANSWER(SECCOMP_RET_ALLOW));
    if (opens & JAIL_NETWORK) {
        PUT(UNLESS(SYS_socket, 12));
        PUT(LOAD(args[0]));
        PUT(UNLESS(AF_INET, 1));
        PUT(ANSWER(SECCOMP_RET_ALLOW));
        PUT(UNLESS(AF_INET6, 1));
        PUT(ANSWER(SECCOMP_RET_ALLOW));
        PUT(UNLESS(AF_NETLINK, 5));
        PUT(LOAD(args[2]));
        PUT(UNLESS(NETLINK_ROUTE, 1));
        PUT(ANSWER(SECCOMP_RET_ALLOW));
        PUT(UNLESS(NETLINK_RDMA, 1));
        PUT(ANSWER(SECCOMP_RET_ALLOW));
        PUT(ANSWER(REFUSED(EPERM)));
        for (size_t i = 0; i < COUNT_OF(network_calls); i++) {
            PUT(UNLESS(network_calls[i], 1));
            PUT(ANSWER(SECCOMP_RET_ALLOW));
        }
    }
    if (opens) {
        PUT(UNLESS(SYS_ioctl, 1));
        PUT(ANSWER(SECCOMP_RET_ALLOW));
    } else {
        PUT(UNLESS(SYS_ioctl, 2 + 2 * COUNT_OF(terminal_requests)));
        PUT(LOAD(args[1]));
        for (size_t i = 0; i < COUNT_OF(terminal_requests); i++) {
            PUT(UNLESS(terminal_requests[i], 1));
            PUT(ANSWER(SECCOMP_RET_ALLOW));
        }
        PUT(ANSWER(REFUSED(EPERM)));
    }
    for (size_t i = 0; i < COUNT_OF(allowed); i++) {
        PUT(UNLESS(allowed[i], 1));
        PUT(ANSWER(SECCOMP_RET_ALLOW));
    }
    PUT(ANSWER(REFUSED(EPERM)));
#undef PUT
    const struct sock_fprog loaded = {.len = (unsigned short)n, .filter = program};
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &loaded, 0, 0)) {
        *what = "load the filter of system calls";
        return -1;
    }
    return 0;
#endif
}
