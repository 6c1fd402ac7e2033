from array import array

from rfaas.native._window import Lane

INLINE: int
BESIDE: int
ASLEEP: int

def measure(
    lane: Lane,
    function: int,
    data: bytearray | memoryview,
    count: int,
    *,
    mode: int = -1,
    in_place: bool = False,
    copy_out: bool = False,
    idle_ns: int = 0,
) -> array[int]: ...
def pipeline(
    lane: Lane,
    function: int,
    data: bytes,
    inflight: int,
    count: int,
    *,
    in_place: bool = False,
) -> int: ...
