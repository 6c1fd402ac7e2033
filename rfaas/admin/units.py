"""systemd units of the roles: text only, nothing here touches the system.

One template for what `rfaas install` writes and for the files that a package
brings (packaging/systemd/, which a test holds equal to this).
"""

from __future__ import annotations

from collections.abc import Sequence

MARK = "written by `rfaas install`"  # a unit without it is somebody else's
ACCOUNT = "rfaas"
RUNTIME_DIR = "/run/rfaas"
STATE_DIR = "/var/lib/rfaas"

_ABOUT = {
    "resource-manager": "rFaaS resource manager: knows nodes, grants leases",
    "executor": "rFaaS executor: lends this node's cores",
}

_SERVICE = """
# READY=1 comes when the role listens, so that a start that fails is seen to fail.
Type=notify
{access}
Restart=on-failure
RestartSec=1
# Wrong usage, a damaged file, a wrong configuration: trying again does not mend them.
RestartPreventExitStatus=2 65 78
"""

_SYSTEM = f"""
User={{account}}
# Not DynamicUser: it makes the state directory a symbolic link, which rfaas refuses.
RuntimeDirectory=rfaas
# The other role's socket lies there as well.
RuntimeDirectoryPreserve=yes
StateDirectory=rfaas
StateDirectoryMode=0700
Environment=RFAAS_RUNTIME_DIR={RUNTIME_DIR} RFAAS_STATE_DIR={STATE_DIR}
# Memory that a network card writes into is locked.
LimitMEMLOCK=infinity
LimitNOFILE=65536
"""

_EXECUTOR = """
# SIGTERM goes to the executor alone, which ends its workers; what is left is killed.
KillMode=mixed
# A worker that runs out of memory is that lease's end, not the executor's.
OOMPolicy=continue
TasksMax=infinity
"""

_EXECUTOR_SYSTEM = """
# Cgroups of leases' own below this unit's.
Delegate=yes
# What workers inherit and clients' functions would meet is left out on purpose:
#   NoNewPrivileges, CapabilityBoundingSet, RestrictSUIDSGID: rootless containers need
#     newuidmap; the sandbox itself takes privileges away from what it runs
#   RestrictNamespaces: the sandbox is made of namespaces
#   ProtectKernelTunables, ProtectKernelLogs, ProtectProc: they cover parts of /proc, and
#     then no namespace below may mount a /proc of its own
#   ProtectControlGroups: leases have cgroups
#   PrivateDevices, DeviceAllow, ProtectClock: /dev/infiniband and GPUs would be gone
#   PrivateTmp, ProtectHome, ProtectSystem=strict: functions use files where their owners do
#   MemoryDenyWriteExecute, SystemCallFilter: functions may compile code, and call anything
#   LockPersonality, ProtectKernelModules, ProtectHostname, SystemCallArchitectures,
#     RestrictRealtime: with User= they imply NoNewPrivileges, systemd.exec(5)
ProtectSystem=full
"""

_MANAGER_SYSTEM = """
# It runs no foreign code and needs its sockets, its store and the network card.  Left out:
# PrivateDevices and ProtectClock, which take /dev/infiniband away.
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectProc=invisible
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
# netlink: rdma-core asks the kernel for devices there
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallFilter=@system-service
SystemCallArchitectures=native
"""

_MAIN = "NotifyAccess=main"
_ALL = (
    "# The binary is two processes: one unpacks and waits, the other is the role.\nNotifyAccess=all"
)

_USER_MANAGER = """
NoNewPrivileges=yes
"""


def name_of(role: str) -> str:
    """The unit's name."""
    return f"rfaas-{role}.service"


def unit(
    role: str,
    command: Sequence[str],
    *,
    user: bool = False,
    account: str = ACCOUNT,
    two_processes: bool = False,
) -> str:
    """The unit that runs `role`.

    Args:
        role: "resource-manager" or "executor".
        command: what runs it: the program's absolute path and its arguments.
        user: whether it is for a user's own systemd, which can neither raise limits nor
            change users, and where sockets are where that user's clients look.
        account: the user that a service of the machine runs as.
        two_processes: whether the program is the binary, which has a parent of its own.
    """
    parts = [_SERVICE.format(access=_ALL if two_processes else _MAIN)]
    if not user:
        parts.append(_SYSTEM.format(account=account))
    if role == "executor":
        parts.append(_EXECUTOR)
    parts.append(
        (_USER_MANAGER if role != "executor" else "")
        if user
        else (_EXECUTOR_SYSTEM if role == "executor" else _MANAGER_SYSTEM)
    )
    online = "" if user else "Wants=network-online.target\nAfter=network-online.target\n"
    return (
        f"# {name_of(role)}, {MARK}\n\n"
        f"[Unit]\nDescription={_ABOUT[role]}\nDocumentation=man:rfaas-serve(1)\n{online}\n"
        f"[Service]\nExecStart={' '.join(quoted(word) for word in command)}"
        f"{''.join(parts)}\n"
        f"[Install]\nWantedBy={'default.target' if user else 'multi-user.target'}\n"
    )


def quoted(word: str) -> str:
    """A word of a command line as ExecStart takes it, systemd.service(5)."""
    text = word.replace("%", "%%").replace("$", "$$")
    if not word or set(word) & set(" \t\"';\\"):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return text
