"""The messages by which both sides of a link show that they have the cluster's key.  No I/O.

They stand between Hello and Welcome; the conversation is in guard.py.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from rfaas.proto.messages import Message, Name

NONCE_BYTES = 32
PROOF_BYTES = 32

Nonce = Annotated[bytes, Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]
KeyProof = Annotated[bytes, Meta(min_length=PROOF_BYTES, max_length=PROOF_BYTES)]


class Challenge(Message, frozen=True):
    """The answer to a Hello with a nonce: who listens, its nonce, and its proof of the key."""

    role: Name
    name: Name
    nonce: Nonce
    proof: KeyProof


class Answer(Message, frozen=True):
    """The proof of who connects; answered by Welcome."""

    proof: KeyProof
