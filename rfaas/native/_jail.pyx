# cython: language_level=3
"""Shutting the calling process in; what there must be is decided in rfaas/sandbox."""
from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from libc.string cimport memset

import os

from rfaas import errors

cdef extern from "jail.h" nogil:
    int jail_clone(unsigned long namespaces, int group)
    int jail_fork(int group)
    void jail_keep(int worker, int fd)
    int jail_root(const char **paths, size_t count, size_t devices, const char **what)
    void jail_forget()
    int jail_drop(const char **what)
    int jail_landlock_abi()
    struct jail_rights:
        unsigned long files
        unsigned long net
        unsigned long scoped
        size_t bytes
    jail_rights jail_landlock_rights(int abi)
    int jail_landlock(const char **devices, size_t count, const char **what)
    unsigned JAIL_DEVICES
    int jail_seccomp(unsigned opens, const char **what)

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
    short POLLIN
    int poll(pollfd *fds, unsigned long count, int timeout_ms)

cdef extern from "<sched.h>" nogil:
    int unshare(int flags)

cdef extern from "<signal.h>" nogil:
    int SIGKILL

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value)
    int PR_SET_PDEATHSIG

NEWTIME = 0x80  # clone(2): these are not in every libc's header, nor in Python's os before 3.12
NEWNS = 0x00020000
NEWUTS = 0x04000000
NEWIPC = 0x08000000
NEWUSER = 0x10000000
NEWPID = 0x20000000
NEWNET = 0x40000000


def fork_into(int group):
    """os.fork(), with the child born in a control group of version 2: the descriptor of its folder.

    Raises OSError where it cannot be born there.
    """
    PyOS_BeforeFork()
    cdef int pid = jail_fork(group)
    cdef int error = errno
    if not pid:
        PyOS_AfterFork_Child()
        return 0
    PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def clone(
    unsigned long namespaces, int ready, int go, int status, int user, int group=-1, enter=None
):
    """Two forks: an init in new namespaces and a session of its own, and in it the worker.

    Returns the init's process id to the caller, and 0 in the worker, once a byte came through the
    pipe from `go` to `ready`: until then the caller maps users.  Both then run as `user`, if that
    is not -1.  The init is born in the control group of version 2 whose folder `group` is, if it
    can be, and first calls `enter` with whether it was.  It writes the worker's wait status to
    `status` and ends with it; it ends with the caller, whenever that is.

    Raises OSError where the init cannot be had.
    """
    cdef int caller = os.pidfd_open(os.getpid())
    cdef unsigned long flags = namespaces & ~<unsigned long>0x80
    cdef bint born = group >= 0
    cdef int pid = jail_clone(flags, group)
    cdef int worker = 0
    cdef const char *what = ""
    if pid < 0 and born:
        born = False
        pid = jail_clone(flags, -1)
    cdef int error = errno
    if pid:
        os.close(caller)
        if pid < 0:
            raise OSError(error, os.strerror(error))
        return pid
    try:
        os.setsid()
        os.close(go)  # or the read would never hear that the caller is gone
        if enter is not None:
            enter(born)
        if not os.read(ready, 1):
            os._exit(71)
        if user >= 0:
            become(user)
        prctl(PR_SET_PDEATHSIG, SIGKILL)  # now: it is forgotten where the user changes
        if has_ended(caller):
            os._exit(71)  # before the kernel was asked to tell
        os.close(caller)
        if namespaces & 0x80:
            unshare(0x80)  # for children
        worker = os.fork()
        if worker:
            jail_drop(&what)
            jail_keep(worker, status)
    except BaseException:
        os._exit(71)
    return 0


cdef bint has_ended(int process):
    """Whether the process of a pidfd is gone."""
    cdef pollfd one
    one.fd = process
    one.events = POLLIN
    return poll(&one, 1, 0) != 0


def become(int user):
    """Be that user and group alone."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def enter_root(paths, devices=()):
    """An empty, read-only root with those absolute paths, and /proc/self/fd.

    No device works in there but `devices`, at their own paths.
    """
    cdef const char *what = ""
    cdef list encoded = [os.fsencode(path) for path in (*paths, *devices)]
    cdef const char **raw = _raw(encoded)
    cdef int error
    try:
        error = jail_root(raw, len(encoded), len(devices), &what)
        _check(error, what)
    finally:
        free(raw)


def forget():
    """Overwrite the environment and the arguments: they are those of who started us."""
    cdef bytes text
    jail_forget()
    for pair in os.environ._data.items():
        for text in pair:
            # SAFETY: nobody else has these objects but, of one byte, the whole interpreter.
            if len(text) > 1:
                memset(<char *>text, 0, len(text))
    os.environ._data.clear()


def drop():
    """No capabilities, and no new privileges."""
    cdef const char *what = ""
    cdef int error = jail_drop(&what)
    _check(error, what)


def landlock_abi():
    """The kernel's version of Landlock; 0: it has none, or it is switched off."""
    return max(0, jail_landlock_abi())


def landlock_rights(int abi):
    """What is refused at an ABI: bits of files, of TCP, of what lies outside; and its record's size."""
    cdef jail_rights rights = jail_landlock_rights(abi)
    return rights.files, rights.net, rights.scoped, rights.bytes


def landlock(devices=()):
    """Read and execute what is beneath /, nothing else; no TCP, no signals and sockets outside.

    `devices` may be written to and have their ioctl(2), too.
    """
    cdef const char *what = ""
    cdef list encoded = [os.fsencode(path) for path in devices]
    cdef const char **raw = _raw(encoded)
    cdef int error
    try:
        error = jail_landlock(raw, len(encoded), &what)
        _check(error, what)
    finally:
        free(raw)


def seccomp(bint devices):
    """Only the system calls of jail_calls.c; with ioctl(2) for `devices`."""
    cdef const char *what = ""
    cdef int error = jail_seccomp(JAIL_DEVICES if devices else 0, &what)
    _check(error, what)


cdef const char **_raw(list encoded) except NULL:
    """Its strings, which it keeps; to be freed."""
    cdef size_t count = len(encoded), i
    cdef const char **raw = <const char **>malloc((count + 1) * sizeof(char *))
    if raw is NULL:
        raise MemoryError
    for i in range(count):
        raw[i] = encoded[i]
    return raw


cdef _check(int error, const char *what):
    cdef int number = errno
    if error:
        raise errors.SystemCallError(
            f"cannot shut the worker in: {os.fsdecode(what)}: {os.strerror(number)}"
        )
