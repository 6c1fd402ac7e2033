"""Lease tokens: what a node needs to know to honour a lease, and proof of it.

The resource manager (or an executor that grants by itself) signs, the executor
checks offline: no question to the manager stands in the way of a lease.

    byte 0       the scheme: 1 is HMAC-SHA256 under the node's key
    bytes 1-32   the code over byte 0 and all that follows byte 32
    then         the claims, a msgpack map

Nothing of a token is decoded before its code is found right.  A node turns
`duration_s` into a deadline on its own monotonic clock; `not_after_s` only
says until when the token may be shown.  Of two tokens for one lease the one
with the greater `fence` is the later.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated

import msgpack
import msgspec
from msgspec import Meta, Struct

from rfaas.errors import InternalError, LeaseEndedError, ProtocolError
from rfaas.proto.messages import Bytes, Cores, Count, Gpus, ImageName, LeaseId, Name, Seconds

SCHEME_HMAC_SHA256 = 1
KEY_BYTES = 32
TOKEN_BYTES_MAX = 4096  # as messages.Token
SKEW_S = 5.0  # by how much the clocks of two nodes may differ

_CODE_BYTES = hashlib.sha256().digest_size
_BODY_OFFSET = 1 + _CODE_BYTES


class Claims(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a token grants; the two times are wall seconds since 1970."""

    lease: LeaseId
    client: Name
    node: Name
    cores: Cores
    memory_bytes: Bytes
    isolation: Name
    image: ImageName = ""
    gpus: Gpus = 0  # which ones the node says
    # 0: its cores are its own; else how many of the node's leases that share may be on now.
    shared: Annotated[int, Meta(ge=0, le=65536)] = 0
    duration_s: Seconds
    issued_at_s: float
    not_after_s: float
    fence: Count


def sign(claims: Claims, key: bytes) -> bytes:
    """The token for `claims`, good on the node that holds the same `key`."""
    body: bytes = msgpack.packb(msgspec.to_builtins(claims))
    return bytes([SCHEME_HMAC_SHA256]) + _code(body, key) + body


def verify(
    token: bytes, key: bytes, node: str, wall_now_s: float, skew_s: float = SKEW_S
) -> Claims:
    """The claims of a token shown on `node`.

    Raises:
        ProtocolError: forged, damaged, for another node, or from the future.
        LeaseEndedError: it was good until `not_after_s`, more than `skew_s` ago.
    """
    if not _BODY_OFFSET < len(token) <= TOKEN_BYTES_MAX:
        raise ProtocolError(
            f"a lease token of {len(token)} bytes cannot be, "
            f"{_BODY_OFFSET + 1} to {TOKEN_BYTES_MAX} are allowed"
        )
    if token[0] != SCHEME_HMAC_SHA256:
        raise ProtocolError(
            f"lease token of scheme {token[0]}, this node checks {SCHEME_HMAC_SHA256}",
            hint="is the resource manager a newer rfaas?",
        )
    body = token[_BODY_OFFSET:]
    if not hmac.compare_digest(token[1:_BODY_OFFSET], _code(body, key)):
        raise ProtocolError(
            f"lease token is not signed for node {node}",
            hint="it was changed, is for another node, or is older than the node's last join",
        )
    claims = _claims(body)
    lease = claims.lease[:8]
    if claims.node != node:
        raise ProtocolError(f"the token of lease {lease} is for node {claims.node}, this is {node}")
    if claims.issued_at_s > wall_now_s + skew_s:
        raise ProtocolError(
            f"the token of lease {lease} was issued {claims.issued_at_s - wall_now_s:.1f} s "
            f"in the future, at most {skew_s:g} s are allowed",
            hint=f"set the clock of node {node}, or of its resource manager",
        )
    if wall_now_s >= claims.not_after_s + skew_s:
        raise LeaseEndedError(
            f"the token of lease {lease} expired {wall_now_s - claims.not_after_s:.1f} s ago",
            hint="request a new lease",
        )
    return claims


def _code(body: bytes, key: bytes) -> bytes:
    if len(key) != KEY_BYTES:  # HMAC would take an empty one
        raise InternalError(f"a node's key has {KEY_BYTES} bytes, not {len(key)}")
    return hmac.digest(key, bytes([SCHEME_HMAC_SHA256]) + body, "sha256")


def _claims(body: bytes) -> Claims:
    try:
        return msgspec.convert(msgpack.unpackb(body), Claims)
    except (ValueError, msgspec.ValidationError) as error:
        raise ProtocolError(f"the claims of a lease token are invalid: {error}") from None
