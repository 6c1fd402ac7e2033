"""What a cluster's key does for a link: both sides prove that they have it, then guard frames.

    who connects                             who listens
    Hello(credential: dialled, nonce)  --->
                                       <---  Challenge(nonce, proof)
    Answer(proof), and from here on    --->
    each frame with a tag
                                       <---  Welcome

A proof is HMAC-SHA256 under the cluster's key over the side that makes it, both nonces, both
roles and names, and the address that was dialled (the mutual authentication in three passes of
ISO/IEC 9798-4).  It is of no use on another link, nor to the other side as its own proof.

Under the same key and over the same facts the link gets keys of its own, four of them: by
direction, for tags and for secrets.  A frame's tag is HMAC-SHA256 over its number and its
bytes: what was altered, left out, repeated or moved is refused.  A secret in a message (of a
lease, of a worker's endpoint, the key of a node) is XORed with HMAC-SHA256 over the frame's
number and its place, which is used for nothing else: a pseudo-random function in counter mode,
encrypted first and tagged then.  The rest of a message can be read, and who gets the cluster's
key later can decrypt what was recorded: there is no forward secrecy.  No I/O.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import NamedTuple

from msgspec.structs import replace

from rfaas.errors import ProtocolError
from rfaas.proto import codec
from rfaas.proto.messages import LeaseGranted, Message, NodeJoined, WorkerStarted

CLUSTER_KEY_BYTES = 32
TAG_BYTES = 32

_PROOF, _KEY = b"rfaas proof 1", b"rfaas link key 1"
_CONNECTS, _LISTENS = b"connects", b"listens"

Mask = Callable[[bytes], bytes]


class Meeting(NamedTuple):
    """What both sides of a link know of it; what proofs and keys are made over."""

    role: str  # of who connects, as in its Hello
    name: str
    listener_role: str
    listener_name: str
    dialled: str  # where who listens was reached, "" where no network is between
    nonce: bytes  # of who connects
    listener_nonce: bytes

    def told(self) -> bytes:
        """All of it, each part with its length."""
        parts = [part if isinstance(part, bytes) else part.encode() for part in self]
        return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def proof(key: bytes, meeting: Meeting, *, listens: bool) -> bytes:
    """What shows that the side which `listens`, or connects, has the key."""
    side = _LISTENS if listens else _CONNECTS
    return hmac.digest(key, _PROOF + side + meeting.told(), "sha256")


def proves(shown: bytes, key: bytes, meeting: Meeting, *, listens: bool) -> bool:
    """Whether that side made the proof; in constant time."""
    return hmac.compare_digest(shown, proof(key, meeting, listens=listens))


class Guard:
    """One side of a guarded link: frames out and in, each in the order of the link."""

    tag_bytes = TAG_BYTES

    def __init__(self, key: bytes, meeting: Meeting, *, listens: bool) -> None:
        def own(side: bytes, use: bytes) -> bytes:
            return hmac.digest(key, _KEY + side + use + meeting.told(), "sha256")

        ours, theirs = (_LISTENS, _CONNECTS) if listens else (_CONNECTS, _LISTENS)
        self._tag_out, self._mask_out = own(ours, b"tag"), own(ours, b"mask")
        self._tag_in, self._mask_in = own(theirs, b"tag"), own(theirs, b"mask")
        self._sent = 0
        self._received = 0

    def encode(self, message: Message) -> bytes:
        """The frame of a message that is sent next; `unsent` if it is not after all.

        Raises:
            ProtocolError: it would be longer than FRAME_BYTES_MAX.
        """
        number = self._sent.to_bytes(8, "little")
        plain = codec.encode(_masked(message, _mask(self._mask_out, number)))
        body = plain[codec.LENGTH.size :]
        self._sent += 1
        tag = hmac.digest(self._tag_out, number + body, "sha256")
        return codec.LENGTH.pack(len(body) + TAG_BYTES) + body + tag

    def unsent(self) -> None:
        """Nothing of the last frame has left: the next one takes its number."""
        self._sent -= 1

    def decode(self, body: bytes) -> Message:
        """The message in a frame's body.

        Raises:
            ProtocolError: it is not what the other side sent as the next one.
        """
        number = self._received.to_bytes(8, "little")
        body, tag = body[:-TAG_BYTES], body[-TAG_BYTES:]
        if not hmac.compare_digest(tag, hmac.digest(self._tag_in, number + body, "sha256")):
            raise ProtocolError(
                f"frame {self._received} of the link is not what the other side sent",
                hint="something between alters, repeats or drops what links carry",
            )
        self._received += 1
        return _masked(codec.decode(body), _mask(self._mask_in, number))


def _mask(key: bytes, number: bytes) -> Mask:
    """XOR with a stream of which each secret of a frame takes 32 bytes of its own."""
    place = 0

    def mask(secret: bytes) -> bytes:
        nonlocal place
        stream = hmac.digest(key, number + place.to_bytes(4, "little"), "sha256")
        place += 1
        return bytes(one ^ other for one, other in zip(secret, stream, strict=False))

    return mask


def _masked(message: Message, mask: Mask) -> Message:
    """The message with its secrets masked, or bare again; they have at most 32 bytes."""
    match message:
        case LeaseGranted():
            rest = tuple(replace(part, secret=mask(part.secret)) for part in message.rest)
            return replace(message, secret=mask(message.secret), rest=rest)
        case NodeJoined():
            return replace(message, key=mask(message.key))
        case WorkerStarted(endpoint=endpoint) if endpoint is not None:
            return replace(message, endpoint=replace(endpoint, secret=mask(endpoint.secret)))
    return message
