"""Ledger, keeper and store under random histories: kill -9, power cuts of what was not saved,
full disks, clocks that jump, nodes that come back without knowing what the manager forgot.

What was saved is what clients were told of.  A model holds it; after each restart, and after
every step, the book must keep what was promised.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rfaas.clock import ManualClock
from rfaas.core.lease import CAUSES, LIVE, Ask, Ended, Lease, Placement
from rfaas.core.ledger import Ledger, Quota
from rfaas.errors import CapacityError, LeaseEndedError, SystemCallError, UnavailableError
from rfaas.proto.messages import Usage
from rfaas.store import NodeRecord
from rfaas.store.keeper import Keeper
from rfaas.store.sqlite import SqliteStore

SILENCE_S = 3.0
NODES = {"a": (4, 8, 2), "b": (8, 4, 0), "c": (2, 2, 1)}  # cores, bytes of memory, GPUs
QUOTA = Quota(cores_max=10, leases_max=6, gpus_max=2)
DURATION_MAX_S = 100.0

names = st.sampled_from(sorted(NODES))
numbers = st.integers(0, 99)
rarely = st.sampled_from([False, False, False, True])


class FullDisk(SqliteStore):
    """A store whose disk is full now and then, as a test says."""

    is_full = False

    def save(self, *records: object, **more: object) -> None:
        if self.is_full:
            raise SystemCallError("cannot write store: no space left")
        super().save(*records, **more)  # type: ignore[arg-type]


class KeeperMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="rfaas-histories-"))
        self.clock = ManualClock()
        self.ids = count(1)
        self.incarnation: dict[str, str] = {}
        self.serves: dict[str, set[str]] = {node: set() for node in NODES}  # by the nodes' word
        self.told: set[str] = set()  # leases that a client knows of: they were saved
        self.saved_ends: set[str] = set()  # of these, whose end was saved
        self.deadline: dict[str, float] = {}  # the last that a client was told, by our clock
        self.used: dict[str, int] = {}  # calls by lease that nodes have told, and were saved
        self.fence = 0
        self.open()

    def open(self) -> None:
        self.store = FullDisk(str(self.directory / "store.db"), "normal")
        self.ledger = Ledger(1.0, int(SILENCE_S), DURATION_MAX_S, quota=QUOTA, new_id=self.new_id)
        self.keeper = Keeper(self.ledger, self.store, self.clock)
        self.keeper.restore()
        self.ends: Counter[str] = Counter()

    def new_id(self) -> str:
        return f"{next(self.ids):032x}"

    @property
    def now_s(self) -> float:
        return self.clock.monotonic_s()

    def tick(self) -> None:
        self.note(self.ledger.tick(self.now_s))
        self.ledger.silent.clear()

    def note(self, ended: Sequence[Ended]) -> None:
        for one in ended:
            self.ends[one.lease] += 1
            self.serves[one.node].discard(one.lease)  # it is told so, or when it joins again
            self.keeper.mark_leases(one.lease)

    def live(self) -> dict[str, Lease]:
        found = (self.ledger.find(one.lease) for one in self.ledger.leases(self.now_s))
        return {lease.lease: lease for lease in found if lease is not None}

    def pick(self, number: int) -> Lease | None:
        live = self.live()
        return live[sorted(live)[number % len(live)]] if live else None

    def save(self) -> bool:
        """What was decided is in the store, and answered."""
        try:
            self.keeper.save()
        except SystemCallError:
            return False
        for report in self.ledger.leases(self.now_s, all=True):
            lease = self.ledger.find(report.lease)
            assert lease is not None
            self.fence = max(self.fence, lease.fence)  # none of a grant that nobody heard of
            if lease.state == LIVE:
                self.told.add(lease.lease)
                self.deadline[lease.lease] = lease.ends_at_s
            elif lease.lease in self.told:
                self.saved_ends.add(lease.lease)
            if lease.usage.calls:
                self.used[lease.lease] = max(lease.usage.calls, self.used.get(lease.lease, 0))
        return True

    # Steps

    @initialize()
    def site(self) -> None:
        for node in sorted(NODES):
            self.join(node, again=False)

    @rule(node=names, again=st.booleans())
    def join(self, node: str, again: bool) -> None:
        """A node comes (back): the same process with what it still serves, or a new one."""
        self.tick()
        if not again or node not in self.incarnation:
            self.incarnation[node] = self.new_id()
            self.serves[node].clear()
        cores, memory_bytes, gpus = NODES[node]
        serves = sorted(self.serves[node])
        revoked = self.ledger.join(
            node,
            f"unix:/{node}",
            self.incarnation[node],
            cores,
            memory_bytes,
            ("process",),
            serves,
            self.now_s,
            gpus,
        )
        self.serves[node] -= set(revoked)
        self.keeper.mark_node(
            NodeRecord(
                node=node,
                address=f"unix:/{node}",
                incarnation=self.incarnation[node],
                cores=cores,
                memory_bytes=memory_bytes,
                isolation=("process",),
                key=bytes(32),
                gpus=gpus,
            )
        )
        self.tick()
        assert self.serves[node] <= self.ledger._nodes[node].leases

    @rule(node=names, really=rarely)
    def lose(self, node: str, really: bool) -> None:
        if really:
            self.tick()
            served = set(self.serves[node])
            self.note(self.ledger.lose(node, self.now_s))
            self.tick()
            self.serves[node] |= served  # it hears nothing of it, and serves on

    @rule(
        account=st.sampled_from(["ann", "bob"]),
        cores=st.integers(0, 12),
        memory_bytes=st.integers(0, 8),
        gpus=st.sampled_from([0, 0, 1, 2]),
        placement=st.sampled_from(["pack", "spread", "node"]),
        wait_s=st.sampled_from([0.0, 20.0]),
        duration_s=st.floats(1.0, DURATION_MAX_S),
    )
    def ask(
        self,
        account: str,
        cores: int,
        memory_bytes: int,
        gpus: int,
        placement: Placement,
        wait_s: float,
        duration_s: float,
    ) -> None:
        self.tick()
        wanted = Ask(
            lease=self.new_id(),
            client=f"{account}:1",
            account=account,
            cores=cores,
            memory_bytes=memory_bytes,
            duration_s=duration_s,
            isolation="process",
            placement=placement,
            gpus=gpus,
            wait_s=wait_s,
        )
        try:
            lease = self.ledger.ask(wanted, self.now_s)
        except CapacityError:
            return
        if lease is not None:
            self.enter(lease)

    def enter(self, lease: Lease) -> None:
        parts = self.ledger.parts(lease)
        for part in parts:
            assert part.fence > self.fence, "fences grow over restarts, too"
            self.keeper.mark_leases(part.lease)
        if not self.save():  # refused: nobody has heard of it
            self.ledger.end(lease.lease, "revoked", self.now_s)
            self.keeper.mark_leases(lease.lease)
            self.tick()
            return
        for part in parts:
            self.serves[part.node].add(part.lease)

    @rule()
    def settle(self) -> None:
        self.tick()
        served = self.ledger.settle(self.now_s)
        granted = [settled.granted for settled in served if settled.granted is not None]
        fences = [part.fence for lease in granted for part in self.ledger.parts(lease)]
        assert fences == sorted(set(fences))
        before = self.fence
        for lease in granted:  # all of them are there, so the first commit takes them all
            self.fence = before
            self.enter(lease)

    @rule(number=numbers, duration_s=st.floats(0.5, DURATION_MAX_S))
    def renew(self, number: int, duration_s: float) -> None:
        self.tick()
        lease = self.pick(number)
        if lease is None:
            return
        try:
            self.ledger.renew(lease.lease, duration_s, self.now_s)
        except LeaseEndedError:
            assert lease.ending
            return
        for part in self.ledger.parts(lease):
            self.keeper.mark_leases(part.lease)
        self.save()

    @rule(number=numbers, calls=st.integers(1, 50))
    def beat(self, number: int, calls: int) -> None:
        """A node tells what one of its leases has used in all; not always saved at once."""
        self.tick()
        lease = self.pick(number)
        if lease is None or lease.lease not in self.serves[lease.node]:
            return
        used = Usage(calls=lease.usage.calls + calls)
        try:
            self.ledger.beat(lease.node, {lease.lease: used}, self.now_s)
        except UnavailableError:
            return
        self.keeper.mark_leases(lease.lease)

    @rule(number=numbers, cause=st.sampled_from(sorted(CAUSES)), calls=st.integers(0, 9))
    def end(self, number: int, cause: str, calls: int) -> None:
        self.tick()
        lease = self.pick(number)
        if lease is None:
            return
        used = Usage(calls=lease.usage.calls + calls)
        assert self.ledger.end(lease.lease, cause, self.now_s, used)
        assert not self.ledger.end(lease.lease, cause, self.now_s, used)
        self.note([Ended(lease.lease, lease.node, cause)])
        self.tick()

    @rule(number=numbers, notice_s=st.sampled_from([0.0, 2.0]))
    def revoke(self, number: int, notice_s: float) -> None:
        self.tick()
        if (lease := self.pick(number)) is not None:
            for part in self.ledger.revoke(lease.lease, notice_s, self.now_s):
                self.keeper.mark_leases(part.lease)
            self.tick()

    @rule(seconds=st.floats(0, 5), silent=rarely)
    def wait(self, seconds: float, silent: bool) -> None:
        self.tick()
        self.clock.advance(seconds)
        if not silent:
            for node in self.ledger.nodes(self.now_s):
                if node.state != "lost":
                    self.ledger.beat(node.node, {}, self.now_s)
        self.tick()

    @rule(full=st.booleans())
    def commit(self, full: bool) -> None:
        """The time of a commit has come, and the disk may be full."""
        self.store.is_full = full
        self.save()

    @rule(jump_s=st.sampled_from([0.0, 0.0, -3600.0, 3600.0]), away_s=st.floats(0, 4))
    def killed(self, jump_s: float, away_s: float) -> None:
        """kill -9, and what was not saved is gone; meanwhile the wall clock may be set."""
        self.tick()
        before = self.live()
        self.store.close()
        self.clock.jump(jump_s)
        self.clock.advance(away_s)
        self.open()
        restored = self.live()
        assert restored.keys() <= before.keys() | self.told, "nothing comes from nowhere"
        for lease in self.told - self.saved_ends:
            found = self.ledger.find(lease)
            assert found is not None, "a lease that a client was told of is known"
            if found.state == LIVE and jump_s <= 0:
                assert found.ends_at_s <= self.now_s + found.duration_s + 1e-6
            if jump_s == 0 and self.deadline[lease] > self.now_s + 1e-3:
                assert found.state == LIVE
        for lease in self.saved_ends:
            found = self.ledger.find(lease)
            assert found is None or found.state != LIVE, "nothing is revived"
        self.tick()
        for node, serving in self.serves.items():  # the executors live, and still serve
            assert node in self.ledger.names or not serving

    # What must hold

    @invariant()
    def no_node_is_overcommitted(self) -> None:
        live = self.live().values()
        for node in self.ledger.nodes(self.now_s):
            here = [lease for lease in live if lease.node == node.node]
            assert node.leases == len(here)
            free = (node.cores_free, node.memory_free_bytes, node.gpus_free)
            taken = [
                sum(getattr(lease, one) for lease in here)
                for one in ("cores", "memory_bytes", "gpus")
            ]
            whole = NODES[node.node]
            assert free == tuple(a - b for a, b in zip(whole, taken, strict=True))
            assert min(free) >= 0

    @invariant()
    def accounts_hold_what_their_leases_are(self) -> None:
        held: dict[str, list[int]] = {}
        for lease in self.live().values():
            sums = held.setdefault(lease.account, [0, 0, 0])
            sums[0] += lease.cores
            sums[1] += lease.bundle in ("", lease.lease)
            sums[2] += lease.gpus
        assert held == self.ledger._held
        for cores, leases, gpus in held.values():
            assert cores <= QUOTA.cores_max
            assert leases <= QUOTA.leases_max
            assert gpus <= QUOTA.gpus_max

    @invariant()
    def bundles_are_whole(self) -> None:
        live = self.live()
        for lease in live.values():
            if lease.bundle:
                parts = self.ledger.parts(lease)
                assert lease in parts
                assert all(part.lease in live for part in parts)
                assert sum(part.lease == lease.bundle for part in parts) == 1

    @invariant()
    def ends_are_counted_once(self) -> None:
        assert all(times == 1 for times in self.ends.values())

    @invariant()
    def bills_are_what_was_saved(self) -> None:
        sums: Counter[str] = Counter()
        for bill in self.store.bills(most=10_000):
            sums[bill.lease] += bill.usage.calls
        assert sums == Counter(self.used)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.directory)


KeeperMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, print_blob=True
)
TestKeeper = KeeperMachine.TestCase
