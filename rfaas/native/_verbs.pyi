from array import array
from collections.abc import Sequence

from typing_extensions import Buffer

from rfaas.native._window import Lane
from rfaas.native._worker import Library

FAULTS: dict[int, str]
REFUSALS: dict[int, str]

class Trouble(Exception):  # noqa: N818 - never seen by users
    step: str
    error: int
    event: str
    status: int
    refusal: str
    bytes: int

def connect(
    lane: Lane, number: int, source: str, host: str, port: int, secret: bytes, timeout_s: float
) -> None: ...
def lock_always(on: bool) -> None: ...
def fault(lane: Lane) -> tuple[str, int, str, int] | None: ...
def hang_up(lane: Lane) -> None: ...
def inline_max(lane: Lane) -> int: ...
def bare(lane: Lane, data: Buffer, count: int) -> array[int] | None: ...
def stream(lane: Lane, size: int, depth: int, count: int) -> int: ...

class WorkerLanes:
    @property
    def port(self) -> int: ...
    def __init__(
        self,
        library: Library | None,
        rings_fd: int,
        ring_bytes: int,
        account_fd: int,
        cpus: Sequence[int],
        hot_timeout_ms: int,
        host: str,
        secret: bytes,
        feed: str | None = None,
    ) -> None: ...
    def filenos(self) -> tuple[int, int]: ...
    def step(self) -> None: ...
    def faults(self) -> list[tuple[str, int, str, int] | None]: ...
    def stop(self) -> None: ...
