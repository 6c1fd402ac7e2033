"""How a client proves that a lease is its own: with a secret that never travels to a node.

Whoever grants a lease derives its secret from the key of its node and tells it to the client
alone; the node derives it again.  The client proves that it has it by a code over what the
other side drew for this link: a token, or a whole conversation, that was overheard or stolen
is of no use on another link.
"""

from __future__ import annotations

import hmac

NONCE_BYTES = 16

_SECRET = b"the secret of lease "  # a node's key signs tokens, which never begin like this


def secret_of(lease: str, key: bytes) -> bytes:
    """The secret of a lease on the node with that key."""
    return hmac.digest(key, _SECRET + lease.encode(), "sha256")


def prove(secret: bytes, nonce: bytes, lease: str) -> bytes:
    """The proof for one lease on the link with that nonce."""
    return hmac.digest(secret, nonce + lease.encode(), "sha256")


def proves(proof: bytes, key: bytes, nonce: bytes, lease: str) -> bool:
    """Whether the client of that lease made the proof for this link; in constant time."""
    return hmac.compare_digest(proof, prove(secret_of(lease, key), nonce, lease))
