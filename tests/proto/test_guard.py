"""What a cluster's key does for a link, without a link: proofs, tags, masks."""

from __future__ import annotations

import hmac
from itertools import product

import pytest

from rfaas.errors import ProtocolError
from rfaas.proto import codec, guard
from rfaas.proto.guard import Guard, Meeting
from rfaas.proto.messages import (
    Endpoint,
    LeaseGranted,
    LeasePart,
    Message,
    NodeJoined,
    Nodes,
    WorkerStarted,
)
from rfaas.proto.wire import SECRET_BYTES

KEY = b"k" * guard.CLUSTER_KEY_BYTES
MEETING = Meeting("client", "a", "executor", "b", "10.0.0.1 7471", b"n" * 32, b"m" * 32)
SECRET = bytes(range(32))
PART = LeasePart(
    lease="0" * 32,
    node="b",
    address="tcp:b:1",
    cores=1,
    memory_bytes=1,
    isolation="none",
    duration_s=1.0,
    token=b"t",
    secret=SECRET,
)
GRANTED = LeaseGranted(
    **{name: getattr(PART, name) for name in PART.__struct_fields__}, rest=(PART, PART)
)
STARTED = WorkerStarted(
    worker=1,
    transport="verbs",
    lanes=1,
    slots=1,
    slot_bytes=1,
    cpus=(0,),
    functions=("f",),
    endpoint=Endpoint(host="b", port=1, secret=SECRET[:SECRET_BYTES]),
)


def both(key: bytes = KEY, other: bytes = KEY) -> tuple[Guard, Guard]:
    """Who connects, who listens."""
    return Guard(key, MEETING, listens=False), Guard(other, MEETING, listens=True)


def body(frame: bytes) -> bytes:
    return frame[codec.LENGTH.size :]


def test_a_proof_is_of_one_side_and_one_meeting() -> None:
    others = [
        replaced
        for name in Meeting._fields
        for replaced in [MEETING._replace(**{name: getattr(MEETING, name)[:-1]})]
    ]
    shown = guard.proof(KEY, MEETING, listens=True)
    assert guard.proves(shown, KEY, MEETING, listens=True)
    assert not guard.proves(shown, KEY, MEETING, listens=False)
    assert not guard.proves(shown, bytes(32), MEETING, listens=True)
    for meeting in [*others, MEETING._replace(nonce=MEETING.listener_nonce)]:
        assert not guard.proves(shown, KEY, meeting, listens=True)


def test_parts_do_not_run_into_each_other() -> None:
    assert (
        MEETING._replace(role="x", name="yz").told() != MEETING._replace(role="xy", name="z").told()
    )


@pytest.mark.parametrize(
    "message",
    [GRANTED, NodeJoined(heartbeat_s=1.0, key=SECRET), STARTED, Nodes(nodes=())],
    ids=lambda message: type(message).__name__,
)
def test_secrets_cannot_be_read_on_the_way(message: Message) -> None:
    one, other = both()
    frames = [one.encode(message), one.encode(message)]
    for frame in frames:
        assert SECRET[:SECRET_BYTES] not in frame
        assert other.decode(body(frame)) == message
    assert one.decode(body(other.encode(message))) == message
    bare = codec.encode(message)
    assert {len(frame) for frame in frames} == {len(bare) + guard.TAG_BYTES}


def test_no_part_of_the_stream_serves_twice() -> None:
    """All secrets are the same, so equal ciphertexts would tell of equal streams."""
    seen = set()
    for side, _ in product(both(), range(3)):
        sent = codec.decode(body(side.encode(GRANTED))[: -guard.TAG_BYTES])
        assert isinstance(sent, LeaseGranted)
        seen |= {sent.secret, *(part.secret for part in sent.rest)}
    assert len(seen) == 2 * 3 * 3


def test_the_stream_is_that_of_the_docstring() -> None:
    one, _ = both()
    sent = codec.decode(body(one.encode(NodeJoined(heartbeat_s=1.0, key=bytes(32))))[:-32])
    key = hmac.digest(KEY, b"rfaas link key 1" + b"connects" + b"mask" + MEETING.told(), "sha256")
    assert isinstance(sent, NodeJoined)
    assert sent.key == hmac.digest(key, bytes(8) + bytes(4), "sha256")


def test_a_frame_is_good_once_in_its_place_and_direction() -> None:
    one, other = both()
    first, second = one.encode(GRANTED), one.encode(GRANTED)
    for wrong in (second, other.encode(GRANTED), codec.encode(GRANTED)):
        with pytest.raises(ProtocolError, match="frame 0 of the link is not what"):
            other.decode(body(wrong))
    assert other.decode(body(first)) == GRANTED
    with pytest.raises(ProtocolError, match="frame 1"):
        other.decode(body(first))
    assert other.decode(body(second)) == GRANTED


def test_every_byte_counts() -> None:
    one, other = both()
    frame = body(one.encode(STARTED))
    for place in range(len(frame)):
        altered = bytearray(frame)
        altered[place] ^= 1
        with pytest.raises(ProtocolError, match="is not what the other side sent"):
            other.decode(bytes(altered))
    for cut in (b"", frame[:-1], frame[-32:], frame + b"\0"):
        with pytest.raises(ProtocolError, match="is not what"):
            other.decode(cut)
    assert other.decode(frame) == STARTED


def test_what_was_not_sent_leaves_no_gap() -> None:
    one, other = both()
    one.encode(Nodes(nodes=()))
    one.unsent()
    assert other.decode(body(one.encode(GRANTED))) == GRANTED


def test_another_key() -> None:
    one, other = both(other=bytes(32))
    with pytest.raises(ProtocolError, match="is not what"):
        other.decode(body(one.encode(GRANTED)))
