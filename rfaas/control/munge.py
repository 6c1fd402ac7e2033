"""Who is at the other end of a link, by MUNGE: `[control] auth = "munge"`.

MUNGE (dun.github.io/munge) runs on most clusters with Slurm: a daemon on each host, all with
one key, that seals a user's id into a credential and opens it on any other host, once and for
a few minutes.  Whoever connects puts one into its Hello; whoever listens has it opened.

libmunge is loaded when it is asked for, so that nothing else needs it.  Its calls wait for the
daemon on this host, less than a millisecond; roles make them in a thread.
"""

from __future__ import annotations

import asyncio
import os
import pwd
from typing import TYPE_CHECKING, Any

from rfaas.config import ControlConfig
from rfaas.errors import NotPermittedError, UnavailableError
from rfaas.proto.messages import Hello, Welcome

if TYPE_CHECKING:
    from rfaas.control.aio import Admit, AsyncLink

_LIBRARY = "libmunge.so.2"
_SOCKET = 8  # MUNGE_OPT_SOCKET, munge.h
_EXPIRED, _REWOUND, _REPLAYED = 15, 16, 17  # EMUNGE_CRED_*: opened, and not to be trusted


def credential(config: ControlConfig) -> str:
    """What a Hello carries to say whose it is; "" where links are not authenticated.

    Raises:
        UnavailableError: no libmunge, or no munged.
    """
    if config.auth != "munge":
        return ""
    import ctypes  # 10 ms that only such a site needs

    library, context = _open(config)
    made = ctypes.c_char_p()
    try:
        status = library.munge_encode(ctypes.byref(made), context, None, 0)
        if status or made.value is None:
            raise UnavailableError(
                f"MUNGE gives no credential: {_word(library, status)}",
                hint="is munged running on this host? control.munge_socket is where it listens",
            )
        return made.value.decode()
    finally:
        library.munge_ctx_destroy(context)


def admit(config: ControlConfig) -> Admit | None:
    """What a listener asks about each Hello; None where anybody may connect."""
    if config.auth != "munge":
        return None

    async def user(hello: Hello, _link: AsyncLink, _welcome: Welcome) -> str:
        uid = await asyncio.get_running_loop().run_in_executor(None, _uid, config, hello)
        if hello.role == "executor" and uid not in (0, os.geteuid()):
            raise NotPermittedError(
                f"user {_name(uid)} may not join nodes: this role runs as {_name(os.geteuid())}"
            )
        return _name(uid)

    return user


def _uid(config: ControlConfig, hello: Hello) -> int:
    """Whose a Hello is."""
    who = f"{hello.role} {hello.name}"
    if not hello.credential:
        raise NotPermittedError(
            f"{who} does not say by MUNGE who it is", hint='set control.auth = "munge" there too'
        )
    import ctypes

    library, context = _open(config)
    uid = ctypes.c_uint32()
    try:
        status = library.munge_decode(
            hello.credential.encode(), context, None, None, ctypes.byref(uid), None
        )
    finally:
        library.munge_ctx_destroy(context)
    if status:
        late = status in (_EXPIRED, _REWOUND)
        raise NotPermittedError(
            f"the credential of {who} is refused: {_word(library, status)}",
            hint="do the clocks of the two hosts agree?" if late else "",
        )
    return uid.value


def _open(config: ControlConfig) -> tuple[Any, Any]:
    import ctypes

    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise UnavailableError(
            f"control.auth is munge, and {_LIBRARY} cannot be loaded: {error}",
            hint="apt-get install munge, or the package of that name",
        ) from None
    library.munge_ctx_create.restype = ctypes.c_void_p
    library.munge_ctx_destroy.argtypes = [ctypes.c_void_p]
    library.munge_strerror.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.munge_ctx_create())
    if config.munge_socket:
        # SAFETY: a string argument of a C function with variable arguments, copied by it.
        library.munge_ctx_set(context, _SOCKET, ctypes.c_char_p(config.munge_socket.encode()))
    return library, context


def _word(library: Any, status: int) -> str:
    return bytes(library.munge_strerror(status)).decode()


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"
