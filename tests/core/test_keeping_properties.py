"""Kept workers under random histories: hypothesis plays clients, leases and time.

A supervisor and the book of kept workers, side by side as a node has them.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rfaas.core.keeping import Keeping, Shape
from rfaas.core.supervisor import Kill, Over, Part, Supervisor, Worker
from rfaas.core.tokens import Claims
from rfaas.errors import CapacityError
from rfaas.proto.messages import Usage

CORES = 4
MEMORY = 8
KEEP_S = 10.0
KEPT_MAX = 3

owners = st.sampled_from(["", "uid 1", "uid 2"])
kinds = st.sampled_from(["a", "b"])


class KeepingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.supervisor = Supervisor(range(CORES), 100)
        self.keeping = Keeping(CORES, MEMORY, KEEP_S, KEPT_MAX)
        self.now_s = 0.0
        self.number = 0
        self.serving: dict[str, tuple[Worker, Shape, str]] = {}  # by lease
        self.kept: dict[int, tuple[Shape, str, str, float]] = {}  # by worker; and its lease, since
        self.gone: Counter[int] = Counter()

    def spare(self) -> None:
        for number in self.keeping.spare(*self.supervisor.in_use(), self.now_s):
            del self.kept[number]
            self.gone[number] += 1

    @rule(
        owner=owners,
        kind=kinds,
        cores=st.integers(1, CORES),
        memory_bytes=st.integers(1, MEMORY),
        former=st.sets(st.integers(0, 40), max_size=3),
    )
    def lease(self, owner: str, kind: str, cores: int, memory_bytes: int, former: set[int]) -> None:
        """A lease that fits gets its worker, whatever is kept; it may be one of its client's."""
        used = sum(shape.memory_bytes for _, shape, _ in self.serving.values())
        if used + memory_bytes > MEMORY:  # the ledger's to refuse
            return
        self.number += 1
        claims = Claims(
            lease=f"{self.number:032x}",
            client="the same name",
            node="node",
            cores=cores,
            memory_bytes=memory_bytes,
            isolation="process",
            duration_s=1e6,
            issued_at_s=0,
            not_after_s=1e9,
            fence=1,
        )
        try:
            self.supervisor.open(claims, self.now_s, self.now_s)
        except CapacityError:
            leased = sum(shape.lanes for _, shape, _ in self.serving.values())
            assert cores > CORES - leased, "refused because of what is kept"
            return
        worker = self.supervisor.start(claims.lease)
        self.supervisor.loaded(worker)
        shape = Shape(kind, "process", "shm", True, cores, memory_bytes, 1, 4096)
        shown = {f"{one:032x}" for one in former}
        number = self.keeping.take(shape, owner, shown, self.now_s)
        fitting = [
            one
            for one, (its, whose, lease, since_s) in self.kept.items()
            if its == shape
            and ((whose and whose == owner) or lease in shown)
            and self.now_s < since_s + KEEP_S
        ]
        assert number == (fitting[-1] if fitting else None)
        if number is not None:
            del self.kept[number]
            self.gone[number] += 1
        self.serving[claims.lease] = (worker, shape, owner)
        self.spare()

    @rule(which=st.integers(0, 99), keep=st.booleans(), dies=st.booleans())
    def end(self, which: int, keep: bool, dies: bool) -> None:
        if not self.serving:
            return
        lease = sorted(self.serving)[which % len(self.serving)]
        worker, shape, owner = self.serving.pop(lease)
        (action,) = self.supervisor.close(lease, "released", self.now_s, keep=keep)
        assert isinstance(action, Part if keep else Kill)
        assert self.supervisor.close(lease, "expired", self.now_s, keep=True) == []
        (over,) = self.supervisor.exited(worker, "", Usage(), self.now_s)
        assert isinstance(over, Over)
        if keep and not dies:
            self.keeping.keep(worker.number, shape, owner, lease, self.now_s)
            self.kept[worker.number] = (shape, owner, lease, self.now_s)
        self.spare()

    @rule(which=st.integers(0, 99))
    def die(self, which: int) -> None:
        if self.kept:
            number = sorted(self.kept)[which % len(self.kept)]
            self.keeping.forget(number)
            del self.kept[number]
            self.gone[number] += 1

    @rule(seconds=st.floats(0, 6))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.spare()
        assert all(self.now_s < since_s + KEEP_S for *_, since_s in self.kept.values())

    @invariant()
    def what_is_kept_takes_nothing_from_anybody(self) -> None:
        shapes = [shape for shape, *_ in self.kept.values()]
        cores, memory_bytes = self.supervisor.in_use()
        assert cores + sum(shape.lanes for shape in shapes) <= CORES
        assert memory_bytes + sum(shape.memory_bytes for shape in shapes) <= MEMORY
        assert len(self.keeping) == len(self.kept) <= KEPT_MAX

    @invariant()
    def each_goes_once(self) -> None:
        assert set(self.gone.values()) <= {1}
        assert not set(self.gone) & set(self.kept)


TestKeepingMachine = KeepingMachine.TestCase


def test_nobody_is_nobodys_client() -> None:
    """Two links that say nothing of whose they are have nothing in common."""
    keeping = Keeping(1, 1, KEEP_S, KEPT_MAX)
    shape = Shape("a", "process", "shm", True, 1, 1, 1, 4096)
    keeping.keep(1, shape, "", "f" * 32, 0.0)
    assert keeping.take(shape, "", (), 0.0) is None
    assert keeping.take(shape, "uid 0", ("e" * 32,), 0.0) is None
    assert keeping.take(shape, "", ("f" * 32,), 0.0) == 1
