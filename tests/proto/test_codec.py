"""Frames: every message comes back as it was, and nothing else comes out."""

from __future__ import annotations

import struct
from typing import Any

import msgpack
import msgspec.inspect as mi
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rfaas.errors import ProtocolError
from rfaas.proto import guard_messages, messages, report_messages, worker_messages
from rfaas.proto.codec import LENGTH, Framer, decode, encode, names_page
from rfaas.proto.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL_VERSION,
    Beat,
    Done,
    Error,
    GetStatus,
    Hello,
    LeaseGranted,
    Message,
    ReleaseLease,
    RequestLease,
    SendLibrary,
    Usage,
)

KINDS = sorted(Message.__subclasses__(), key=lambda kind: kind.__name__)
ITEMS_MAX = 3  # of a tuple or map: what is longer is tested by name below


def strategy(kind: Any) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0911, PLR0912 - a table
    """Values of a type, from what its annotations allow."""
    match kind:
        case mi.BoolType():
            return st.booleans()
        case mi.NoneType():
            return st.none()
        case mi.IntType():
            low = -(2**63) if kind.ge is None else kind.ge
            return st.integers(low, 2**64 - 1 if kind.le is None else kind.le)
        case mi.FloatType():
            return st.floats(kind.ge, kind.le, allow_nan=False)
        case mi.StrType():
            if kind.pattern is not None:
                return st.from_regex(kind.pattern, fullmatch=True)
            return st.text(min_size=kind.min_length or 0, max_size=kind.max_length or 64)
        case mi.BytesType():
            return st.binary(
                min_size=kind.min_length or 0, max_size=min(kind.max_length or 4096, 4096)
            )
        case mi.VarTupleType():
            return st.lists(strategy(kind.item_type), max_size=ITEMS_MAX).map(tuple)
        case mi.DictType():
            pair = (strategy(kind.key_type), strategy(kind.value_type))
            return st.dictionaries(*pair, max_size=ITEMS_MAX)
        case mi.LiteralType():
            return st.sampled_from(kind.values)
        case mi.UnionType():
            return st.one_of([strategy(one) for one in kind.types])
        case mi.Metadata():
            return strategy(kind.type)
        case mi.StructType():
            fields = {field.name: strategy(field.type) for field in kind.fields}
            return st.builds(kind.cls, **fields)
    raise NotImplementedError(kind)


def body(name: object, fields: object) -> bytes:
    packed: bytes = msgpack.packb((name, fields))
    return packed


def fields_of(message: Message) -> dict[str, Any]:
    (fields,) = msgpack.unpackb(encode(message)[LENGTH.size :])[1:]
    assert isinstance(fields, dict)
    return fields


HELLO = Hello(id=7, version=PROTOCOL_VERSION, role="client", name="me")
REQUEST = RequestLease(client="me", cores=2, memory_bytes=10, duration_s=1.5)


class TestRoundTrip:
    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
    def test_every_kind(self, kind: type[Message]) -> None:
        @settings(max_examples=30)
        @given(strategy(mi.type_info(kind)))
        def check(message: Message) -> None:
            frame = encode(message)
            assert LENGTH.unpack_from(frame) == (len(frame) - LENGTH.size,)
            assert decode(frame[LENGTH.size :]) == message

        check()

    def test_all_kinds_are_there(self) -> None:
        declared = {
            name
            for module in (messages, worker_messages, report_messages, guard_messages)
            for name, kind in vars(module).items()
            if isinstance(kind, type) and issubclass(kind, Message)
        } - {"Message"}
        assert declared == {kind.__name__ for kind in KINDS}
        assert len(declared) > 30

    @given(st.lists(strategy(mi.type_info(Hello)), max_size=5), st.data())
    def test_however_the_stream_is_cut(self, sent: list[Message], data: st.DataObject) -> None:
        stream = b"".join(map(encode, sent))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
        framer, received = Framer(), []
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            received += [decode(one) for one in framer.feed(stream[start:end])]
        assert received == sent
        assert framer.pending == 0


class TestRefused:
    @pytest.mark.parametrize("message", [HELLO, REQUEST, Done(), Error(code="usage", text="no")])
    def test_every_truncation(self, message: Message) -> None:
        frame = encode(message)
        for end in range(len(frame) - LENGTH.size):
            with pytest.raises(ProtocolError):
                decode(frame[LENGTH.size :][:end])
        for end in range(len(frame)):
            framer = Framer()
            assert framer.feed(frame[:end]) == []
            assert framer.pending == end

    def test_bytes_behind_it(self) -> None:
        with pytest.raises(ProtocolError, match="not msgpack"):
            decode(encode(HELLO)[LENGTH.size :] + b"\xc0")

    @given(st.binary(max_size=200))
    def test_noise(self, noise: bytes) -> None:
        try:
            assert isinstance(decode(noise), Message)
        except ProtocolError as error:
            assert len(error.text) < 1000  # noqa: PT017 - it may be a message as well

    @settings(max_examples=300)
    @given(st.sampled_from([HELLO, REQUEST, Beat(node="a")]), st.data())
    def test_a_changed_byte(self, message: Message, data: st.DataObject) -> None:
        changed = bytearray(encode(message)[LENGTH.size :])
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        try:
            assert isinstance(decode(bytes(changed)), Message)
        except ProtocolError:
            pass

    def test_lengths(self) -> None:
        assert Framer().feed(LENGTH.pack(FRAME_BYTES_MAX)) == []
        assert Framer().feed(LENGTH.pack(3) + b"abcd") == [b"abc"]
        assert Framer().feed(LENGTH.pack(0)) == [b""]
        for length in (FRAME_BYTES_MAX + 1, 2**31, 2**32 - 1):
            with pytest.raises(ProtocolError, match=f"{length} bytes, at most {FRAME_BYTES_MAX}"):
                Framer().feed(LENGTH.pack(length))
        framer = Framer()
        with pytest.raises(ProtocolError):
            framer.feed(encode(HELLO) + LENGTH.pack(2**32 - 1))

    @pytest.mark.parametrize(
        "bomb",
        [
            b"\x91" * FRAME_BYTES_MAX,  # arrays in arrays
            b"\x81\xa1a" * (FRAME_BYTES_MAX // 3),  # maps in maps
            b"\x92\xa4Done" + b"\x81\xa1a" * 1000 + b"\xc0",
            b"\x90" * FRAME_BYTES_MAX,
            b"\xdc\xff\xf0" + b"\x90" * (FRAME_BYTES_MAX - 3),  # 65,520 empty arrays
            b"\xdc\x1f\xff" + b"\x90" * 0x1FFF,
            b"\xdd\xff\xff\xff\xff",  # an array of 4 Gi
            b"\xdf\xff\xff\xff\xff",  # a map of 4 Gi
            b"\xdb\xff\xff\xff\xff",  # a text of 4 GiB
            b"\xc6\xff\xff\xff\xff",  # bytes of 4 GiB
            b"\x92\xa4Done\xde\x10\x01"
            + b"".join(b"\xcd%c%c\xc0" % (i >> 8, i & 255) for i in range(4097)),
            b"\xc1",  # never used
            b"",
        ],
        ids=range(13),
    )
    def test_bombs(self, bomb: bytes) -> None:
        with pytest.raises(ProtocolError):
            decode(bomb)

    def test_nested_values_in_fields(self) -> None:
        deep: object = 1
        for _ in range(300):
            deep = [deep]
        for name in ("version", "role", "name", "id"):
            with pytest.raises(ProtocolError, match=rf"\$\.{name}"):
                decode(body("Hello", fields_of(HELLO) | {name: deep}))

    @pytest.mark.parametrize(
        "ext",
        [msgpack.ExtType(1, b"x"), msgpack.ExtType(1, b""), msgpack.Timestamp(1)],
        ids=["one", "empty", "timestamp"],
    )
    def test_extension_types(self, ext: object) -> None:
        with pytest.raises(ProtocolError):
            decode(body("Done", {"id": ext}))
        with pytest.raises(ProtocolError):
            decode(body(ext, {}))

    @pytest.mark.parametrize(
        "pair",
        [[], ["Done"], ["Done", {}, 1], ["Done", []], [b"Done", {}], [1, {}], {"Done": {}}, None],
        ids=repr,
    )
    def test_no_message(self, pair: object) -> None:
        with pytest.raises(ProtocolError, match="holds no message"):
            decode(msgpack.packb(pair))

    @pytest.mark.parametrize("name", ["Message", "Usage", "NodeReport", "done", "", "x" * 1000])
    def test_unknown_message(self, name: str) -> None:
        with pytest.raises(ProtocolError, match="unknown") as error:
            decode(body(name, {}))
        assert name[:64] in error.value.text
        assert len(error.value.text) < 120

    def test_unknown_field(self) -> None:
        with pytest.raises(ProtocolError, match=r"Hello is invalid.*`extra`"):
            decode(body("Hello", fields_of(HELLO) | {"extra": 1}))
        with pytest.raises(ProtocolError, match="`extra`"):
            decode(body("LeaseEnded", {"lease": "0" * 32, "cause": "x", "usage": {"extra": 1}}))

    def test_missing_field(self) -> None:
        for name in ("version", "role", "name"):
            fields = fields_of(HELLO)
            del fields[name]
            with pytest.raises(ProtocolError, match=f"`{name}`"):
                decode(body("Hello", fields))
        assert decode(body("GetStatus", {})) == GetStatus()

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("id", -1),
            ("id", 2**63),
            ("id", True),
            ("id", "1"),
            ("id", 1.5),
            ("client", ""),
            ("client", "x" * 256),
            ("client", b"me"),
            ("client", None),
            ("cores", 0),
            ("cores", 65537),
            ("cores", -1),
            ("cores", 2**64 - 1),
            ("memory_bytes", 2**60 + 1),
            ("duration_s", -0.5),
            ("duration_s", float("inf")),
            ("duration_s", float("-inf")),
            ("duration_s", float("nan")),
            ("duration_s", 10 * 365 * 86400 + 1),
            ("isolation", ["process"]),
        ],
    )
    def test_values_out_of_bounds(self, field: str, value: object) -> None:
        with pytest.raises(ProtocolError, match=rf"RequestLease is invalid: .*\$\.{field}"):
            decode(body("RequestLease", fields_of(REQUEST) | {field: value}))

    @pytest.mark.parametrize(
        "lease", ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n", "\n" + "a" * 32]
    )
    def test_ids(self, lease: str) -> None:
        with pytest.raises(ProtocolError, match=r"\$\.lease"):
            decode(body("ReleaseLease", {"lease": lease}))
        assert decode(body("ReleaseLease", {"lease": "a" * 32})) == ReleaseLease(lease="a" * 32)

    @pytest.mark.parametrize("role", ["", "root", "client\n", "xclient", "worker "])
    def test_roles(self, role: str) -> None:
        with pytest.raises(ProtocolError, match=r"\$\.role"):
            decode(body("Hello", fields_of(HELLO) | {"role": role}))

    def test_text_that_is_none(self) -> None:
        for raw in (b"\xff\xfe", b"\xed\xa0\x80"):  # not UTF-8; a lone surrogate
            packed = body("Error", {"code": "usage", "text": "@@"[: len(raw)].ljust(len(raw), "@")})
            with pytest.raises(ProtocolError):
                decode(packed.replace(b"@" * len(raw), raw))

    def test_lists_of_many(self) -> None:
        usage: dict[str, object] = {f"{number:032x}": {} for number in range(257)}
        with pytest.raises(ProtocolError, match=r"\$\.usage"):
            decode(body("Beat", {"node": "a", "usage": usage}))
        usage.popitem()
        beat = decode(body("Beat", {"node": "a", "usage": usage}))
        assert isinstance(beat, Beat)
        assert set(beat.usage.values()) == {Usage()}


class TestLimits:
    def test_a_frame_at_most(self) -> None:
        def big(size: int) -> Message:
            return messages.Functions(functions=("x" * 255,) * size)

        names = FRAME_BYTES_MAX // 257
        frame = encode(big(names - 1))
        assert FRAME_BYTES_MAX - 600 < len(frame) - LENGTH.size <= FRAME_BYTES_MAX
        assert len(Framer().feed(frame)) == 1
        with pytest.raises(
            ProtocolError, match=f"Functions is too large.*at most {FRAME_BYTES_MAX}"
        ):
            encode(big(names + 1))

    def test_the_largest_part_of_a_library_fits(self) -> None:
        size = messages.LIBRARY_PART_BYTES_MAX
        part = SendLibrary(
            id=2**63 - 1,
            lease="0" * 32,
            sha256="0" * 64,
            size_bytes=messages.LIBRARY_BYTES_MAX,
            offset=2**63 - 1,
            data=bytes(size),
        )
        assert decode(encode(part)[LENGTH.size :]) == part
        with pytest.raises(ProtocolError, match=r"\$\.data"):
            decode(body("SendLibrary", fields_of(part) | {"data": bytes(size + 1)}))

    def test_bytes_stay_bytes(self) -> None:
        granted = LeaseGranted(
            lease="0" * 32,
            node="n",
            address="unix:/x",
            cores=1,
            memory_bytes=0,
            isolation="process",
            duration_s=1,
            token=bytes(range(256)),
        )
        assert decode(encode(granted)[LENGTH.size :]) == granted

    @given(st.lists(st.text(min_size=1, max_size=255), max_size=40), st.integers(0, 45))
    def test_pages_of_names(self, names: list[str], start: int) -> None:
        found: list[str] = []
        at, more = start, True
        while more:
            page, more = names_page(names, at)
            assert page or not more
            assert len(encode(messages.Functions(functions=page, more=more))) < FRAME_BYTES_MAX
            found += page
            at += len(page)
        assert found == names[start:]

    def test_many_pages(self) -> None:
        names = [f"{number:05d}" + "x" * 250 for number in range(2000)]
        found: list[str] = []
        pages = 0
        more = True
        while more:
            page, more = names_page(names, len(found))
            found += page
            pages += 1
        assert found == names
        assert pages > 10


def test_length_is_little_endian() -> None:
    assert struct.unpack_from("<I", encode(Done())) == (len(encode(Done())) - 4,)


def test_a_join_names_as_many_leases_as_a_frame_holds() -> None:
    join = messages.JoinNode(
        node="n" * 255,
        address="a" * 255,
        incarnation="1" * 32,
        cores=65536,
        memory_bytes=2**60,
        isolation=("i" * 255,) * 8,
        leases=("a" * 32,) * messages.LEASES_PER_JOIN_MAX,
    )
    assert decode(encode(join)[LENGTH.size :]) == join
    with pytest.raises(ProtocolError, match=r"\$\.leases"):
        decode(body("JoinNode", fields_of(join) | {"leases": [*join.leases, "a" * 32]}))
