"""Lease tokens: what was signed comes back, and nothing else does."""

from __future__ import annotations

import hashlib
import hmac

import msgpack
import msgspec
import pytest

from rfaas.core import tokens
from rfaas.core.tokens import Claims, sign, verify
from rfaas.errors import InternalError, LeaseEndedError, ProtocolError
from rfaas.proto.messages import Token

KEY = bytes(range(32))
NOW_S = 1.8e9
CLAIMS = Claims(
    lease="7f3a" * 8,
    client="tester",
    node="n1",
    cores=4,
    memory_bytes=1 << 30,
    isolation="process",
    duration_s=60.0,
    issued_at_s=NOW_S,
    not_after_s=NOW_S + 60,
    fence=12,
)
TOKEN = sign(CLAIMS, KEY)


def changed(**fields: object) -> bytes:
    """A token, rightly signed, whose claims are not what they should be."""
    raw = msgspec.to_builtins(CLAIMS) | fields
    return signed(msgpack.packb({name: value for name, value in raw.items() if value != "gone"}))


def signed(body: bytes) -> bytes:
    return b"\1" + hmac.digest(KEY, b"\1" + body, hashlib.sha256) + body


def test_round_trip() -> None:
    assert verify(TOKEN, KEY, "n1", NOW_S) == CLAIMS


def test_every_flipped_bit_is_refused() -> None:
    for index in range(len(TOKEN)):
        for bit in range(8):
            forged = bytearray(TOKEN)
            forged[index] ^= 1 << bit
            with pytest.raises(ProtocolError):
                verify(bytes(forged), KEY, "n1", NOW_S)


def test_every_shortened_token_is_refused() -> None:
    for length in range(len(TOKEN)):
        with pytest.raises(ProtocolError):
            verify(TOKEN[:length], KEY, "n1", NOW_S)


def test_a_lengthened_token_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not signed for node n1"):
        verify(TOKEN + b"\0", KEY, "n1", NOW_S)


def test_another_key_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not signed for node n1") as refused:
        verify(TOKEN, bytes(32), "n1", NOW_S)
    assert "older than the node's last join" in refused.value.hint


def test_another_node_with_the_same_key_is_refused() -> None:
    with pytest.raises(
        ProtocolError, match="the token of lease 7f3a7f3a is for node n1, this is n"
    ):
        verify(TOKEN, KEY, "n2", NOW_S)


def test_another_scheme_is_refused_by_name() -> None:
    with pytest.raises(ProtocolError, match="lease token of scheme 2, this node checks 1"):
        verify(b"\2" + TOKEN[1:], KEY, "n1", NOW_S)


def test_a_code_without_its_scheme_is_refused() -> None:
    body = TOKEN[33:]
    with pytest.raises(ProtocolError, match="not signed"):
        verify(b"\1" + hmac.digest(KEY, body, hashlib.sha256) + body, KEY, "n1", NOW_S)


def test_expires_after_the_skew() -> None:
    assert verify(TOKEN, KEY, "n1", NOW_S + 64.99) == CLAIMS
    with pytest.raises(LeaseEndedError, match=r"lease 7f3a7f3a expired 5.0 s ago"):
        verify(TOKEN, KEY, "n1", NOW_S + 65)
    with pytest.raises(LeaseEndedError):
        verify(TOKEN, KEY, "n1", NOW_S + 60, skew_s=0)


def test_the_future_is_refused_after_the_skew() -> None:
    assert verify(TOKEN, KEY, "n1", NOW_S - 5) == CLAIMS
    with pytest.raises(ProtocolError, match=r"issued 5.5 s in the future, at most 5 s"):
        verify(TOKEN, KEY, "n1", NOW_S - 5.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"lease": "7F3A" * 8},
        {"lease": "short"},
        {"client": ""},
        {"cores": 0},
        {"cores": -1},
        {"cores": 1.5},
        {"memory_bytes": 1 << 61},
        {"duration_s": -1.0},
        {"duration_s": "60"},
        {"fence": -1},
        {"gpus": -1},
        {"tpus": 1},
        {"node": "gone"},
    ],
)
def test_signed_nonsense_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="the claims of a lease token are invalid"):
        verify(changed(**fields), KEY, "n1", NOW_S)


@pytest.mark.parametrize("body", [b"\xc1", b"\x80\x80", b"\x90", b"\x81", b"\xdd\xff\xff\xff\xff"])
def test_signed_bytes_that_are_no_claims_are_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="the claims of a lease token are invalid"):
        verify(signed(body), KEY, "n1", NOW_S)


def test_size_is_bounded_before_anything_else() -> None:
    longest = signed(bytes(tokens.TOKEN_BYTES_MAX - 33))
    with pytest.raises(ProtocolError, match="claims"):
        verify(longest, KEY, "n1", NOW_S)
    with pytest.raises(ProtocolError, match="a lease token of 4097 bytes cannot be, 34 to 4096"):
        verify(longest + b"\0", KEY, "n1", NOW_S)


def test_the_largest_claims_fit_into_a_message() -> None:
    name = "\N{SNOWMAN}" * 255
    largest = msgspec.structs.replace(
        CLAIMS, client=name, node=name, isolation=name, memory_bytes=2**60, fence=2**63 - 1
    )
    token = sign(largest, KEY)
    assert msgspec.convert(token, Token) == token
    assert verify(token, KEY, name, NOW_S) == largest


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_size_is_a_bug(key: bytes) -> None:
    with pytest.raises(InternalError):
        sign(CLAIMS, key)
    with pytest.raises(InternalError):
        verify(TOKEN, key, "n1", NOW_S)
