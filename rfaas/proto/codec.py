"""Messages to frames and back.  No I/O.

A frame is a 4-byte little-endian length and that many bytes of msgpack: a pair
of the message's name and its fields.  Its length is checked before anything is
decoded, msgpack's own bounds while it is, and every field's type and range
after: what leaves `decode` is a valid message or a ProtocolError.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgpack
import msgspec

from rfaas.errors import ProtocolError
from rfaas.proto import messages
from rfaas.proto.messages import FRAME_BYTES_MAX, Message

LENGTH = struct.Struct("<I")

_KINDS: dict[str, type[Message]] = {}

_GREETINGS = (messages.Hello, messages.Welcome)


def encode(message: Message) -> bytes:
    """The frame of a message, length included.

    Raises:
        ProtocolError: the frame would be longer than FRAME_BYTES_MAX.
    """
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    body: bytes = msgpack.packb((type(message).__name__, fields))
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(
            f"message {type(message).__name__} is too large "
            f"({len(body)} bytes), at most {FRAME_BYTES_MAX} are allowed"
        )
    return LENGTH.pack(len(body)) + body


def decode(body: bytes) -> Message:
    """The message in a frame's body.

    Raises:
        ProtocolError: not msgpack, not a message, or a field out of bounds.
    """
    try:
        pair = msgpack.unpackb(
            body,
            strict_map_key=True,
            max_ext_len=0,
            max_str_len=FRAME_BYTES_MAX,
            max_bin_len=FRAME_BYTES_MAX,
            max_array_len=FRAME_BYTES_MAX // 8,
            max_map_len=4096,
        )
    except Exception as error:  # noqa: BLE001 - msgpack raises a dozen unrelated kinds
        why = str(error) or type(error).__name__
        raise ProtocolError(f"a frame of {len(body)} bytes is not msgpack: {why}") from None
    match pair:
        case [str(name), dict(fields)]:
            pass
        case _:
            raise ProtocolError(f"a frame of {len(body)} bytes holds no message")
    kind = _kind(name)
    if kind is None:
        raise ProtocolError(f"message {name[:64]!r} is unknown")
    if kind in _GREETINGS and fields.get("version") != messages.PROTOCOL_VERSION:
        # A later version may say more in it: what it must say is enough to refuse it by name.
        fields = {key: fields[key] for key in fields if key in kind.__struct_fields__}
        fields.setdefault("program", "of unknown version")
    return _convert(kind, fields)


def _kind(name: str) -> type[Message] | None:
    """The kind of message, of all that are declared in what this process has imported."""
    if name not in _KINDS:
        _KINDS.update((kind.__name__, kind) for kind in Message.__subclasses__())
    return _KINDS.get(name)


def _convert(kind: type[Message], fields: dict[Any, Any]) -> Message:
    try:
        return msgspec.convert(fields, kind, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise ProtocolError(f"message {kind.__name__} is invalid: {error}") from None


def names_page(names: Sequence[str], start: int) -> tuple[tuple[str, ...], bool]:
    """The names from index `start` on that fit into a message, and whether more follow."""
    room, end = FRAME_BYTES_MAX // 2, start
    while end < len(names) and room >= 0:
        room -= len(names[end].encode()) + 3  # 3: msgpack's header of a string
        end += 1
    return tuple(names[start:end]), end < len(names)


class Framer:
    """Cuts a stream of bytes into frames' bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.frame_bytes_max = FRAME_BYTES_MAX  # more where a tag follows each message

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes as they came; return the bodies that are complete.

        Raises:
            ProtocolError: a frame announces more than `frame_bytes_max` bytes.
        """
        buffer = self._buffer
        buffer += data
        bodies = []
        start = 0
        while len(buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, start)
            if length > self.frame_bytes_max:
                raise ProtocolError(
                    f"a frame announces {length} bytes, at most {self.frame_bytes_max} are allowed",
                    hint="is the peer an rfaas of another kind, or another program?",
                )
            end = start + LENGTH.size + length
            if len(buffer) < end:
                break
            bodies.append(bytes(buffer[start + LENGTH.size : end]))
            start = end
        del buffer[:start]
        return bodies

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not complete yet."""
        return len(self._buffer)
