"""Who is at the other end of a link, by a key that a cluster shares: `[control] auth = "key"`.

The conversation is that of proto/guard.py.  Whoever listens proves first that it has the key,
so a client tells a stranger no more than its name; then who connects does.

The key is in a file that its owner alone can read, and nowhere else: not on a command line, not
in an environment.  It is read for each link anew, after a role has forked its zygote, so that
no worker has it in memory.
"""

from __future__ import annotations

import os
import secrets
import stat
from binascii import hexlify, unhexlify
from typing import TYPE_CHECKING

from msgspec.structs import replace

from rfaas.config import ControlConfig
from rfaas.control import munge
from rfaas.errors import ConfigError, NotPermittedError, ProtocolError
from rfaas.paths import system_text
from rfaas.proto import guard
from rfaas.proto.guard import CLUSTER_KEY_BYTES, Guard, Meeting
from rfaas.proto.guard_messages import NONCE_BYTES, Answer, Challenge
from rfaas.proto.messages import Hello, Message, Welcome

if TYPE_CHECKING:
    from rfaas.control.aio import Admit, AsyncLink
    from rfaas.control.carrier import Carrier

HINT = 'set control.auth = "key" and the same control.key_file on both sides'

_SCHEME = "key"
_MAKE = "make one with: (umask 077; openssl rand -hex 32 >cluster.key)"


def read(config: ControlConfig) -> bytes:
    """The cluster's key; b"" where links are not authenticated by one.

    Raises:
        ConfigError: there is no such file, others can read or change it, or it holds no key.
    """
    if config.auth != "key":
        return b""
    path = config.key_file
    if not path:
        raise ConfigError('control.auth is "key", and control.key_file names no file', hint=_MAKE)
    try:
        with open(path, "rb", opener=_opened) as file:
            found = os.fstat(file.fileno())
            data = file.read(2 * CLUSTER_KEY_BYTES + 2) if stat.S_ISREG(found.st_mode) else b""
    except OSError as error:
        raise ConfigError(
            f"cannot read the cluster's key, {path}: {system_text(error)}", hint=_MAKE
        ) from None
    if found.st_mode & 0o077:
        raise ConfigError(
            f"{path} holds the cluster's key and others may read it "
            f"(mode {found.st_mode & 0o777:04o})",
            hint=f"`chmod 600 {path}`; if others have read it, make a new one",
        )
    if found.st_uid not in (0, os.geteuid()):
        raise ConfigError(
            f"{path} holds the cluster's key and belongs to another user (uid {found.st_uid})",
            hint="let it belong to root, or to the user that rfaas runs as",
        )
    try:
        key = unhexlify(data.strip())
    except ValueError:
        key = b""
    if len(key) != CLUSTER_KEY_BYTES:
        raise ConfigError(
            f"{path} holds no key: {2 * CLUSTER_KEY_BYTES} hexadecimal digits are one", hint=_MAKE
        )
    return key


class Introduction:
    """The side that connects, until it knows whom it has met."""

    def __init__(self, key: bytes, hello: Hello, carrier: Carrier) -> None:
        self._key = key
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._dialled = carrier.reached(is_ours=False)
        words = (_SCHEME, hexlify(self._nonce).decode(), self._dialled)
        self.hello = replace(hello, credential=" ".join(words))

    def answer(self, challenge: Message, peer: str) -> tuple[Answer, Guard]:
        """What to say to who has answered our Hello, and what guards the link after that.

        Raises:
            NotPermittedError: it does not have the cluster's key.
        """
        if not isinstance(challenge, Challenge):
            raise NotPermittedError(
                f"{peer} does not show that it has the cluster's key", hint=HINT
            )
        meeting = Meeting(
            self.hello.role,
            self.hello.name,
            challenge.role,
            challenge.name,
            self._dialled,
            self._nonce,
            challenge.nonce,
        )
        if not guard.proves(challenge.proof, self._key, meeting, listens=True):
            raise NotPermittedError(f"{peer} has another cluster's key, or none", hint=HINT)
        ours = guard.proof(self._key, meeting, listens=False)
        return Answer(proof=ours), Guard(self._key, meeting, listens=False)


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would wait for who writes


def admit(config: ControlConfig) -> Admit | None:
    """What a listener asks about each Hello, by key or MUNGE; None where anybody may connect.

    Raises:
        ConfigError: as of `read`.
    """
    return admit_by(key) if (key := read(config)) else munge.admit(config)


def admit_by(key: bytes) -> Admit:
    """The same by a key: who listens proves it, and wants it proved."""

    async def user(hello: Hello, link: AsyncLink, welcome: Welcome) -> str:
        who = f"{hello.role} {hello.name}"
        nonce, dialled = _introduced(hello.credential, who)
        reached = link.carrier.reached(is_ours=True)
        if dialled != reached:
            raise NotPermittedError(
                f"{who} called {dialled or 'a Unix socket'} and reached "
                f"{reached or 'a Unix socket'}: something between passes links on",
                hint='with control.auth = "key" links lead from one to the other directly',
            )
        meeting = Meeting(
            hello.role,
            hello.name,
            welcome.role,
            welcome.name,
            dialled,
            nonce,
            secrets.token_bytes(NONCE_BYTES),
        )
        challenge = Challenge(
            role=meeting.listener_role,
            name=meeting.listener_name,
            nonce=meeting.listener_nonce,
            proof=guard.proof(key, meeting, listens=True),
        )
        link.send(replace(challenge, id=hello.id))
        link.protect(Guard(key, meeting, listens=True))
        stranger = NotPermittedError(f"{who} has another cluster's key, or none", hint=HINT)
        try:
            answer = await link.receive()
        except ProtocolError:
            raise stranger from None
        if answer is None:
            raise NotPermittedError(
                f"{who} went when it was to show the cluster's key", hint="has it another one?"
            )
        if not isinstance(answer, Answer) or not guard.proves(
            answer.proof, key, meeting, listens=False
        ):
            raise stranger
        link.asked = answer.id
        return ""

    return user


def _introduced(credential: str, who: str) -> tuple[bytes, str]:
    """The nonce and the address in a Hello's credential."""
    scheme, _, rest = credential.partition(" ")
    digits, _, dialled = rest.partition(" ")
    if scheme != _SCHEME:
        raise NotPermittedError(f"{who} does not say that it has the cluster's key", hint=HINT)
    try:
        nonce = unhexlify(digits)
    except ValueError:
        nonce = b""
    if len(nonce) != NONCE_BYTES:
        raise ProtocolError(f"{who} introduces itself with {len(nonce)} bytes, not {NONCE_BYTES}")
    return nonce, dialled
