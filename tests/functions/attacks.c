/* What a stranger's function may try: one export for each attack of the hostile suite.
 *
 * Those that return say in words what the system answered: "ptrace: EPERM".  The crashes and
 * the loops are in hostile.c.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "attack.h"
#include "attack_bill.h"
#include "memory.h"
#include "rfaas.h"

#define TRIES 200000

extern char **environ;

ATTACK(ignore_term)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (int number = 1; number < 32; number++)
        signal(number, SIG_IGN);
    for (volatile int i = 0;; i = !i)
        continue;
}

/* Leaves a grandchild in a session of its own that holds nothing of ours, and sleeps. */
ATTACK(daemonise)
{
    int ends[2];
    if (pipe(ends)) {
        outcome(to, "pipe", -1);
        return;
    }
    pid_t child = fork();
    if (child == 0) {
        setsid();
        pid_t grandchild = fork();
        if (grandchild == 0) {
            for (int fd = 0; fd < 256; fd++)
                if (fd != ends[1])
                    close(fd);
            ssize_t ignored = write(ends[1], "x", 1);
            (void)ignored;
            close(ends[1]);
            for (;;)
                sleep(1000);
        }
        _exit(grandchild < 0);
    }
    outcome(to, "fork", child);
    char byte;
    close(ends[1]);
    if (child > 0) {
        waitpid(child, NULL, 0);
        outcome(to, "daemon", read(ends[0], &byte, 1) == 1 ? 0 : -1);
    }
    close(ends[0]);
}

/* Forks until it cannot, each child the same; the first tells how many it had. */
ATTACK(fork_bomb)
{
    long forked = 0;
    for (int tries = 0; tries < TRIES; tries++) {
        pid_t child = fork();
        if (child == 0)
            for (;;)
                if (fork() < 0)
                    usleep(1000);
        if (child < 0)
            break;
        forked++;
    }
    outcome(to, "fork", -1);
    say(to, "forked: %ld\n", forked);
}

static void *sleeper(void *unused)
{
    for (;;)
        sleep(1000);
    return unused;
}

ATTACK(thread_bomb)
{
    long started = 0;
    int error = 0;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    for (; started < TRIES && !error; started += !error) {
        pthread_t thread;
        error = pthread_create(&thread, &small, sleeper, NULL);
    }
    errno = error;
    outcome(to, "pthread_create", error ? -1 : 0);
    say(to, "started: %ld\n", started);
}

/* Touches memory of every kind until there is no more. */
ATTACK(memory_hog)
{
    size_t got = 0;
    for (;; got++) {
        int shared = got % 2 ? MAP_SHARED : MAP_PRIVATE;
        char *block = mmap(NULL, MIB, PROT_READ | PROT_WRITE, shared | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            break;
        memset(block, 0xab, MIB);
    }
    outcome(to, "mmap", -1);
    say(to, "MiB: %zu\n", got);
}

ATTACK(fill_disk)
{
    static const char *const places[] = {"/tmp/x", "/dev/shm/x", "/x", "/var/tmp/x",
                                         "/lib/x", "x", "/proc/x", "/home/x"};
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        outcome(to, places[i], open(places[i], O_CREAT | O_WRONLY, 0600));
    outcome(to, text, *text ? open(text, O_CREAT | O_WRONLY, 0600) : -1);
    outcome(to, "memfd_create", syscall(SYS_memfd_create, "x", 0));
}

/* Writes the byte at the place that follows the path, and the next one, which is one too many.
 * With "die" behind, the signal that comes with that is not ignored. */
ATTACK(overgrow_file)
{
    char path[4096], word[8] = "";
    long last = 0;
    if (sscanf(text, "%4095s %ld %7s", path, &last, word) < 2)
        return;
    if (!strcmp(word, "die"))
        signal(SIGXFSZ, SIG_DFL);
    int file = open(path, O_CREAT | O_WRONLY, 0600);
    outcome(to, "open", file);
    outcome(to, "last", pwrite(file, "x", 1, last));
    outcome(to, "past", pwrite(file, "x", 1, last + 1));
    outcome(to, "truncate", ftruncate(file, last + 2));
    close(file);
}

ATTACK(flood_descriptors)
{
    int last = 0, had = 0;
    while ((last = dup(2)) >= 0 && had < TRIES)
        had++;
    outcome(to, "dup", last);
    say(to, "had: %d\n", had);
    for (int fd = 3; fd < had + 64; fd++)
        (void)!fcntl(fd, F_GETFD);
}

ATTACK(flood_output)
{
    char line[4096];
    memset(line, 'x', sizeof line);
    line[sizeof line - 1] = '\n';
    for (;;)
        if (write(1, line, sizeof line) < 0 && errno != EAGAIN)
            break;
    for (;;)
        pause();
}

#define HUGE_BYTES (8L << 30)

/* A memory file, by a page and to nothing, in each way that there is; never one of the disk. */
static int resize(report *to, int fd)
{
    struct stat file;
    if (fd < 0 || fstat(fd, &file) || !S_ISREG(file.st_mode) || file.st_nlink)
        return 0;
    outcome(to, "grow", ftruncate(fd, file.st_size + 4096));
    outcome(to, "allocate", fallocate(fd, 0, file.st_size, 4096));
    outcome(to, "shrink", ftruncate(fd, 0));
    return 1;
}

/* The memory that it shares: by a descriptor, by what /proc has of it, and where it is mapped. */
ATTACK(resize_memory)
{
    int files = 0, opened = 0;
    for (int fd = 0; fd < 1024; fd++)
        files += resize(to, fd);
    DIR *maps = opendir("/proc/self/map_files");
    for (struct dirent *entry; maps && (entry = readdir(maps));) {
        char target[256] = "";
        if (readlinkat(dirfd(maps), entry->d_name, target, sizeof target - 1) < 0 ||
            strncmp(target, "/memfd:rfaas-", 13))
            continue;
        int fd = openat(dirfd(maps), entry->d_name, O_RDWR);
        if (!resize(to, fd))
            continue;
        opened++;
        outcome(to, "cut", openat(dirfd(maps), entry->d_name, O_RDWR | O_TRUNC));
        close(fd);
    }
    if (maps)
        closedir(maps);
    say(to, "files: %d\nopened: %d\n", files, opened);
    /* Of size 0: a second mapping of the same memory, mremap(2); is there any behind its end? */
    void *page = (void *)((uintptr_t)to->text & ~(PAGE - 1));
    char *more = mremap(page, 0, HUGE_BYTES, MREMAP_MAYMOVE);
    outcome(to, "mremap", more == MAP_FAILED ? -1 : 0);
    if (more != MAP_FAILED) {
        const struct sigaction ours = {.sa_handler = go_back};
        struct sigaction before;
        sigaction(SIGBUS, &ours, &before);
        if (!sigsetjmp(back, 1)) {
            more[HUGE_BYTES - 1] = 1;
            say(to, "behind: done\n");
        } else {
            say(to, "behind: SIGBUS\n");
        }
        sigaction(SIGBUS, &before, NULL);
        munmap(more, HUGE_BYTES);
    }
}

ATTACK(trace)
{
    outcome(to, "traceme", ptrace(PTRACE_TRACEME, 0, NULL, NULL));
    outcome(to, "attach", ptrace(PTRACE_ATTACH, 1, NULL, NULL));
    char byte;
    struct iovec own = {&byte, 1}, other = {(void *)0x10000, 1};
    outcome(to, "process_vm_readv", syscall(SYS_process_vm_readv, 1, &own, 1, &other, 1, 0));
}

/* Files of memory that others may have as well: their bytes, and who may open them. */
ATTACK(leave_in_files)
{
    int files = 0;
    for (int fd = 3; fd < 256; fd++) {
        struct stat found;
        char path[64];
        if (fstat(fd, &found) || !S_ISREG(found.st_mode))
            continue;
        files++;
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        const int again = open(path, O_RDWR);
        outcome(to, "write", again < 0 ? -1 : write(again, "x", 1));
        outcome(to, "close it to others", fchmod(fd, 0));
        outcome(to, "lend it", fcntl(fd, F_SETLEASE, F_RDLCK));
        close(again);
    }
    say(to, "files: %d\n", files);
}

/* What the kernel counts by user, and so for its neighbours, too. */
ATTACK(use_up_quotas)
{
    const union sigval none = {0};
    sigset_t one;
    sigemptyset(&one);
    sigaddset(&one, SIGRTMIN);
    pthread_sigmask(SIG_BLOCK, &one, NULL);
    long queued = 0;
    while (queued < TRIES && !(errno = pthread_sigqueue(pthread_self(), SIGRTMIN, none)))
        queued++;
    outcome(to, "sigqueue", errno ? -1 : 0);
    say(to, "queued: %ld\n", queued);
    int ends[2];
    outcome(to, "pipe", pipe(ends));
    outcome(to, "grow", fcntl(ends[0], F_SETPIPE_SZ, 1 << 20));
    outcome(to, "flags", fcntl(ends[0], F_GETFD));
}

/* Memory of its parent, which in a container is an init without a filter. */
ATTACK(reach_init)
{
    const pid_t processes[] = {1, getppid()};
    for (int i = 0; i < 2; i++) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/mem", processes[i]);
        outcome(to, "write its memory", open(path, O_RDWR));
        snprintf(path, sizeof path, "/proc/%d/environ", processes[i]);
        outcome(to, "read its memory", open(path, O_RDONLY));
    }
}

ATTACK(use_io_uring)
{
    char parameters[256] = "";
    outcome(to, "io_uring_setup", syscall(425, 4, parameters));
}

/* Signals whoever it can think of; `text` is a process of the machine. */
ATTACK(kill_others)
{
    outcome(to, "host", kill(atoi(text), 0));
    outcome(to, "parent", kill(getppid(), SIGKILL) ? -1 : 0);
    outcome(to, "group", kill(-atoi(text), 0));
}

ATTACK(nest_namespaces)
{
    outcome(to, "unshare user", unshare(CLONE_NEWUSER));
    outcome(to, "unshare mount", unshare(CLONE_NEWNS));
    outcome(to, "clone user", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0));
    outcome(to, "clone3", syscall(435, NULL, 0));
    outcome(to, "chroot", chroot("/"));
    outcome(to, "mount", syscall(SYS_mount, "none", "/", "tmpfs", 0, NULL));
}

ATTACK(use_bpf)
{
    char attributes[128] = "";
    outcome(to, "bpf", syscall(SYS_bpf, 0, attributes, sizeof attributes));
    outcome(to, "perf_event_open", syscall(SYS_perf_event_open, attributes, 0, -1, -1, 0));
    outcome(to, "userfaultfd", syscall(SYS_userfaultfd, 0));
    outcome(to, "keyctl", syscall(SYS_keyctl, 0, 0, 0, 0, 0));
}

/* `text` is the path of a file, then for each secret a line of it, each character plus one: what
 * is looked for must not be found in what was asked. */
ATTACK(read_secrets)
{
    static char secret[256];
    char *line = strchr(text, '\n');
    if (line)
        *line++ = 0;
    static const char *const files[] = {"/etc/passwd", "/etc/shadow", "/proc/self/environ",
                                        "/proc/self/cmdline", "/proc/self/maps", "/proc/1/environ",
                                        "/root", "/home", "/sys/class/net", "/dev/mem"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        outcome(to, files[i], open(files[i], O_RDONLY));
    outcome(to, "file", open(text, O_RDONLY));
    int descriptors = 0;
    for (int fd = 3; fd < 1024; fd++) {
        struct stat file;
        descriptors += fcntl(fd, F_GETFD) >= 0 && !fstat(fd, &file) && !S_ISSOCK(file.st_mode) &&
                       !S_ISFIFO(file.st_mode);
    }
    say(to, "descriptors: %d\n", descriptors);
    int variables = 0;
    for (char **one = environ; one && *one; one++)
        variables++;
    say(to, "variables: %d\n", variables);
    uintptr_t code = (uintptr_t)&printf, own = (uintptr_t)&read_secrets, stack = (uintptr_t)&to;
    uintptr_t heap = (uintptr_t)sbrk(0), main_stack = (uintptr_t)environ;
    for (; line && *line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
        size_t size = strcspn(line, "\n");
        for (size_t i = 0; i < size; i++)
            secret[i] = (char)(line[i] - 1);
        long found = search(code - 512 * MIB, code + 64 * MIB, secret, size);
        found += search(heap - 64 * MIB, heap, secret, size);
        found += search(main_stack - 4 * MIB, main_stack + 4 * MIB, secret, size);
        if (own < code - 512 * MIB || own > code + 64 * MIB)
            found += search(own - 16 * MIB, own + 16 * MIB, secret, size);
        /* The secret itself, where it was put together here. */
        found -= memmem((void *)((uintptr_t)secret & ~4095UL), 4096, secret, size) != NULL;
        memset(secret, 0, sizeof secret);
        say(to, "found: %ld\n", found);
    }
    (void)stack;
}

/* `text` is the path of a socket. */
ATTACK(connect_out)
{
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(53)};
    inet_pton(AF_INET, "127.0.0.1", &there.sin_addr);
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    outcome(to, "tcp socket", tcp);
    outcome(to, "udp socket", socket(AF_INET, SOCK_DGRAM, 0));
    outcome(to, "netlink socket", socket(AF_NETLINK, SOCK_RAW, 0));
    outcome(to, "packet socket", socket(AF_PACKET, SOCK_RAW, 0));
    if (tcp >= 0) {
        outcome(to, "connect", connect(tcp, (struct sockaddr *)&there, sizeof there));
        outcome(to, "bind", bind(tcp, (struct sockaddr *)&there, sizeof there));
    }
    struct sockaddr_un path = {.sun_family = AF_UNIX};
    strncpy(path.sun_path, text, sizeof path.sun_path - 1);
    int local = socket(AF_UNIX, SOCK_STREAM, 0);
    outcome(to, "unix socket", local);
    if (local >= 0)
        outcome(to, "connect unix", connect(local, (struct sockaddr *)&path, sizeof path));
}

/* What an honest function may need is there: threads, a child, time, memory, a pipe. */
ATTACK(be_honest)
{
    pthread_t thread;
    errno = pthread_create(&thread, NULL, (void *(*)(void *))getpid, NULL);
    outcome(to, "thread", errno ? -1 : 0);
    if (!errno)
        pthread_join(thread, NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(5);
    int status = 0;
    waitpid(child, &status, 0);
    outcome(to, "child", WEXITSTATUS(status) == 5 ? 0 : -1);
    struct timespec now;
    outcome(to, "clock", clock_gettime(CLOCK_MONOTONIC, &now));
    int ends[2];
    outcome(to, "pipe", pipe(ends));
    close(ends[0]);
    close(ends[1]);
    void *block = malloc(8 * MIB);
    outcome(to, "malloc", block ? 0 : -1);
    free(block);
    int pair[2];
    outcome(to, "socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    close(pair[0]);
    close(pair[1]);
}

/* Children in sessions of their own, each with memory that a single process may have, until one of
 * them is killed or all are there; the worker itself has next to none. */
ATTACK(memory_hogs)
{
    int status = 0, killed = 0;
    for (int i = 0; i < 8; i++)
        if (fork() == 0) {
            setsid();
            char *block = mmap(NULL, 32 * MIB, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (block == MAP_FAILED)
                _exit(2);
            memset(block, 0xab, 32 * MIB);
            for (;;)
                sleep(1000);
        }
    while (!killed && wait(&status) > 0)
        killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    say(to, "killed: %d\n", killed);
}

/* How often the calling thread got onto another processor than its own; as a thread's function. */
static void *flee(void *own)
{
    cpu_set_t cpus;
    long fled = 0;
    memset(&cpus, 0xff, sizeof cpus);
    (void)!sched_setaffinity(0, sizeof cpus, &cpus);
    for (int tries = 0; tries < 100; tries++, sched_yield())
        fled += sched_getcpu() != *(int *)own;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        CPU_ZERO(&cpus);
        CPU_SET(cpu, &cpus);
        if (cpu != *(int *)own && !sched_setaffinity(0, sizeof cpus, &cpus))
            fled += sched_getcpu() != *(int *)own;
    }
    return (void *)fled;
}

/* By itself, in a thread, and in a child in a session of its own; `text` is its lease's one. */
ATTACK(flee_processor)
{
    int own = atoi(text), status = 0;
    pthread_t thread;
    void *fled = NULL;
    say(to, "itself: %ld\n", (long)flee(&own));
    errno = pthread_create(&thread, NULL, flee, &own);
    outcome(to, "pthread_create", errno ? -1 : 0);
    if (!errno)
        pthread_join(thread, &fled);
    say(to, "thread: %ld\n", (long)fled);
    pid_t child = fork();
    if (child == 0)
        _exit(setsid() < 0 || flee(&own) != NULL);
    outcome(to, "fork", child);
    waitpid(child, &status, 0);
    say(to, "child: %d\n", WEXITSTATUS(status));
}
