"""rFaaS: functions as a service at the speed of RDMA.

    import rfaas
    with rfaas.connect() as session:
        with session.lease(cores=2, library="functions/libfunctions.so") as lease:
            out = lease.call("echo", b"abc")

The words, one for each thing, in code, configuration, logs and documents:

    resource manager   keeps nodes and leases; grants, renews, ends, bills; never on the path
                       of an invocation
    executor           one per node: checks leases, starts, watches and kills workers
    worker             one process per leased set of cores; loads the client's library
    endpoint           what owns the NIC for lanes: a trusted worker itself, or a process
                       beside a worker that is not trusted with it
    lane               one worker core and its connection to the client: a ring of slots
    slot               room for one invocation's input and result; a lane has several
    ring               a lane's memory: slots and the cells that announce what is in them
    lease              the right to cores and memory of one node until a deadline
    token              a lease as its node can check it without asking anybody
    hot, warm, cold    the worker spins for the next call; sleeps; does not exist yet
    library, function  an ELF shared object; a symbol of it (functions/rfaas.h)
    control link       a connection that carries messages; calls never pass it
    zygote             a small warm process that forks workers
    private executor   one that a client starts for itself and takes away again
"""

from __future__ import annotations

TYPE_CHECKING = False  # to type checkers it is True; `typing` itself costs 5 ms

__version__ = "0.1.0"
__all__ = ["Lease", "RfaasError", "Session", "__version__", "connect"]

if TYPE_CHECKING:
    from rfaas.client import Lease, Session, connect
    from rfaas.errors import RfaasError


def __getattr__(name: str) -> object:
    """Load the client library when it is asked for: roles and tools do without it."""
    if name in ("Lease", "Session", "connect"):
        from rfaas import client

        return getattr(client, name)
    if name == "RfaasError":
        from rfaas.errors import RfaasError

        return RfaasError
    raise AttributeError(f"module 'rfaas' has no attribute {name!r}")
