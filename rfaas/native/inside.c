/* The worker inside a container: a program of its own, so that an image needs no Python.
 *
 *     rfaas-inside 3          the socket to its keeper is descriptor 3
 *     rfaas-inside /path      or listens there
 *
 * Two processes.  The first is the container's init, if it has a pid namespace: it holds
 * the socket, reaps, and ends everything when the keeper's end closes.  The second confines
 * itself, loads the library and runs the lanes; it has no socket, only a pipe to the first.
 * Everything is told by the keeper, which is trusted; only the library is not.
 */
#define _GNU_SOURCE
#include "inside.h"
#include "jail.h"
#include "lane.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

enum { LIBRARY, RINGS, ACCOUNT, TABLE };

static int answer_fd; /* the pipe to the first process */

/* ---- the worker ---------------------------------------------------------------- */

static void fail(uint32_t kind, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void say(inside_message *message) {
    ssize_t written = write(answer_fd, message, sizeof *message);
    (void)written; /* nobody is there: the end is near */
}

static void fail(uint32_t kind, const char *format, ...) {
    inside_message message = {.kind = kind};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message.text, sizeof message.text, format, arguments);
    va_end(arguments);
    say(&message);
    _exit(1);
}

static void refuse(const char *what) {
    fail(INSIDE_FAILED, "cannot %s inside the container: %s", what, strerror(errno));
}

static void limit(const inside_task *task) {
    for (unsigned index = 0; index < INSIDE_LIMITS; index++) {
        if (!task->limits[index].is_set)
            continue;
        struct rlimit now;
        rlim_t wanted = task->limits[index].value;
        if (getrlimit((int)task->limits[index].resource, &now))
            refuse("read a limit");
        if (wanted > now.rlim_max) /* RLIM_INFINITY is the largest */
            wanted = now.rlim_max;
        now.rlim_cur = now.rlim_max = wanted;
        if (setrlimit((int)task->limits[index].resource, &now))
            refuse("set a limit");
    }
}

/* Whatever the engine left: no capability, none to be had by exec, and no system call that
 * level `sandbox` refuses. */
static void confine(const inside_task *task) {
    const char *what = "";
    if (jail_drop(&what))
        refuse(what);
    limit(task);
    unsigned opens = (task->filter & INSIDE_DEVICES ? JAIL_DEVICES : 0) |
                     (task->filter & INSIDE_NETWORK ? JAIL_NETWORK : 0);
    if (task->filter & INSIDE_FILTER && jail_seccomp(opens, &what))
        refuse(what);
}

static void set_environment(const char *entry, const char *end) {
    while (entry < end) {
        char *own = memchr(entry, 0, (size_t)(end - entry)) ? strdup(entry) : NULL;
        if (!own || putenv(own)) /* it is the environment's from now on */
            fail(INSIDE_FAILED, "the worker's environment cannot be set");
        entry += strlen(entry) + 1;
    }
}

static lane_function *load(const inside_task *task, int fd, const char *name, const char *end) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    fault_report();
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *text = dlerror(), *colon = strstr(text, ": ");
        if (!strncmp(text, path, strlen(path)) && colon)
            text = colon + 2;
        fail(INSIDE_FAILED_LIBRARY, "the library cannot be loaded: %s", text);
    }
    lane_function *functions = calloc(task->functions + 1, sizeof *functions);
    if (!functions)
        refuse("make room for the table of functions");
    for (uint32_t index = 0; index < task->functions; index++) {
        if (end - name < 2 || !memchr(name, 0, (size_t)(end - name)))
            fail(INSIDE_FAILED, "the table of functions is cut off");
        functions[index].abi = (uint8_t)*name++;
        functions[index].address = dlsym(library, name);
        if (!functions[index].address)
            fail(INSIDE_FAILED_LIBRARY, "function %s vanished from the library", name);
        name += strlen(name) + 1;
    }
    return functions;
}

static void start(const inside_task *task, const int *fds, const int32_t *cpus,
                  const lane_function *functions) {
    worker_lane *lanes = calloc(task->lanes, sizeof *lanes);
    ring_account *accounts = mmap(NULL, task->lanes * sizeof(ring_account), PROT_READ | PROT_WRITE,
                                  MAP_SHARED, fds[ACCOUNT], 0);
    if (!lanes || accounts == MAP_FAILED)
        refuse("map the accounting page");
    ticks_calibrate();
    for (uint32_t index = 0; index < task->lanes; index++) {
        worker_lane *lane = &lanes[index];
        const char *what;
        int error = ring_open(&lane->ring, fds[RINGS], index * task->ring_bytes, &what);
        if (!error) {
            what = "protect its guard pages";
            error = ring_guard(&lane->ring);
        }
        if (error)
            fail(INSIDE_FAILED, "cannot open a ring: could not %s: %s", what, strerror(error));
        lane->account = &accounts[index];
        lane->functions = functions;
        lane->function_count = task->functions;
        lane->loop = lane_loop;
        lane->cpu = cpus[index];
        lane->hot_ticks = task->hot_timeout_ms < 0
                              ? HOT_ALWAYS
                              : ns_to_ticks((uint64_t)task->hot_timeout_ms * 1000000u);
        error = lane_start(lane);
        if (error)
            fail(INSIDE_FAILED, "cannot start a lane: %s", strerror(error));
    }
}

static void work(const inside_task *task, const int *fds, pid_t parent) {
    inside_message done = {.kind = INSIDE_LOADED};
    uint64_t at = monotonic_ns(), now;
    prctl(PR_SET_NAME, "rfaas-worker", 0, 0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != parent)
        _exit(0);
    setsid(); /* not ours to lead where the engine made us do it already */
    const uint8_t *table = mmap(NULL, task->table_bytes, PROT_READ, MAP_SHARED, fds[TABLE], 0);
    if (table == MAP_FAILED)
        refuse("map its task");
    const uint64_t cpus_bytes = task->lanes * sizeof(int32_t);
    if (cpus_bytes > task->table_bytes ||
        task->environment_bytes > task->table_bytes - cpus_bytes)
        fail(INSIDE_FAILED, "the worker's task is cut off");
    const char *environment = (const char *)table + cpus_bytes;
    const char *names = environment + task->environment_bytes;
    set_environment(environment, names);
    confine(task);
    now = monotonic_ns();
    done.steps_ns[0] = now - at, at = now;
    lane_function *functions =
        load(task, fds[LIBRARY], names, (const char *)table + task->table_bytes);
    now = monotonic_ns();
    done.steps_ns[1] = now - at, at = now;
    start(task, fds, (const int32_t *)table, functions);
    done.steps_ns[2] = monotonic_ns() - at;
    for (int index = 0; index < INSIDE_FDS; index++)
        close(fds[index]);
    say(&done);
    close(answer_fd);
    for (;;) /* the lanes are threads; this one ends with the process */
        pause();
}

/* ---- the init ------------------------------------------------------------------ */

static int keeper_of(const char *where) {
    if (where[0] != '/')
        return atoi(where);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(where) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, where);
    return connect(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

/* 0, or -1 where the keeper is gone or is none of ours. */
static int take_task(int keeper, inside_task *task, int *fds) {
    char room[CMSG_SPACE(INSIDE_FDS * sizeof(int))] __attribute__((aligned(8)));
    struct iovec part = {task, sizeof *task};
    struct msghdr header = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    ssize_t got;
    do
        got = recvmsg(keeper, &header, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    struct cmsghdr *control = CMSG_FIRSTHDR(&header);
    if (got != (ssize_t)sizeof *task || task->magic != INSIDE_MAGIC || !control ||
        control->cmsg_type != SCM_RIGHTS || control->cmsg_len != CMSG_LEN(INSIDE_FDS * sizeof(int)))
        return -1;
    memcpy(fds, CMSG_DATA(control), INSIDE_FDS * sizeof(int));
    return 0;
}

static void tell(int keeper, inside_message *message) {
    ssize_t sent = send(keeper, message, sizeof *message, MSG_NOSIGNAL);
    (void)sent; /* gone: poll says so next */
}

/* Until the worker is dead or the keeper gone; returns our exit status. */
static int attend(int keeper, int signals, int answers, pid_t worker) {
    struct pollfd ready[] = {{.fd = keeper, .events = POLLIN},
                             {.fd = signals, .events = POLLIN},
                             {.fd = answers, .events = POLLIN}};
    inside_message message;
    for (;;) {
        if (poll(ready, 3, -1) < 0 && errno != EINTR)
            return 71;
        if (ready[0].revents)
            return 0; /* it sends nothing more: this is the end */
        if (ready[2].revents) {
            if (read(answers, &message, sizeof message) == (ssize_t)sizeof message &&
                message.kind > INSIDE_HELLO && message.kind < INSIDE_ENDED)
                tell(keeper, &message);
            ready[2].fd = -1; /* it says one thing: a constructor may never stop */
        }
        if (!ready[1].revents)
            continue;
        struct signalfd_siginfo info;
        ssize_t taken = read(signals, &info, sizeof info);
        (void)taken;
        int status;
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG | __WALL)) > 0;) {
            if (pid != worker)
                continue;
            if (ready[2].fd >= 0 && /* what it said before */
                read(answers, &message, sizeof message) == (ssize_t)sizeof message &&
                message.kind > INSIDE_HELLO && message.kind < INSIDE_ENDED)
                tell(keeper, &message);
            message = (inside_message){.kind = INSIDE_ENDED, .status = status};
            tell(keeper, &message);
            return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        }
    }
}

int main(int count, char **words) {
    inside_task task;
    int fds[INSIDE_FDS], answers[2], keeper = count == 2 ? keeper_of(words[1]) : -1;
    inside_message hello = {.kind = INSIDE_HELLO, .status = INSIDE_MAGIC};
    ticks_calibrate();
    clearenv(); /* what engines tell is for nobody in here */
    if (keeper < 0 || fcntl(keeper, F_SETFD, FD_CLOEXEC) ||
        send(keeper, &hello, sizeof hello, MSG_NOSIGNAL) < 0) {
        fputs("rfaas: this program is started by an executor, inside a container\n", stderr);
        return 64;
    }
    if (take_task(keeper, &task, fds))
        return 0;
    sigset_t children, before;
    sigemptyset(&children);
    sigaddset(&children, SIGCHLD);
    sigprocmask(SIG_BLOCK, &children, &before);
    signal(SIGTERM, SIG_IGN); /* engines send it; the keeper's end is what ends us */
    int signals = signalfd(-1, &children, SFD_CLOEXEC);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    /* We have no filter and the same user as the worker: it must not write to our memory. */
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (signals < 0 || pipe2(answers, O_CLOEXEC) || fcntl(answers[0], F_SETFL, O_NONBLOCK))
        return 71;
    pid_t self = getpid(), worker = fork();
    if (!worker) {
        sigprocmask(SIG_SETMASK, &before, NULL);
        signal(SIGTERM, SIG_DFL);
        close(keeper);
        close(signals);
        close(answers[0]);
        answer_fd = answers[1];
        work(&task, fds, self);
    }
    close(answers[1]);
    for (int index = 0; index < INSIDE_FDS; index++)
        close(fds[index]);
    if (worker < 0) {
        hello = (inside_message){.kind = INSIDE_FAILED};
        snprintf(hello.text, sizeof hello.text, "cannot fork the worker inside the container: %s",
                 strerror(errno));
        tell(keeper, &hello);
        return 71;
    }
    int status = attend(keeper, signals, answers[0], worker);
    if (self != 1) { /* no namespace of its own to end with us */
        kill(-worker, SIGKILL);
        kill(worker, SIGKILL);
    }
    return status;
}
