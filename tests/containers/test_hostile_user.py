"""What of the hostile suite ends otherwise where the node is a user's, who has no control groups.

Resource limits and namespaces have to do what groups do elsewhere.  Level `sandbox` has the whole
suite as a user in tests/e2e/test_hostile.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.conftest import equip
from tests.containers.test_hostile import test_secrets
from tests.e2e.conftest import counter
from tests.e2e.test_hostile import (
    attacks,
    lease,
    test_an_honest_function_has_what_it_needs,
    test_daemon,
    test_daemon_outlives_no_worker,
    test_descriptor_flood,
    test_disk_fill,
    test_fork_bomb,
    test_kill,
    test_memory_hog,
    test_nothing_outlives_the_zygote,
    test_refused,
    test_thread_bomb,
)
from tests.harness import users
from tests.harness.hostile import Node, made
from tests.harness.images import Layout

__all__ = [
    "attacks",
    "counter",
    "lease",
    "test_an_honest_function_has_what_it_needs",
    "test_daemon",
    "test_daemon_outlives_no_worker",
    "test_descriptor_flood",
    "test_disk_fill",
    "test_fork_bomb",
    "test_kill",
    "test_memory_hog",
    "test_nothing_outlives_the_zygote",
    "test_refused",
    "test_secrets",
    "test_thread_bomb",
]


@pytest.fixture(params=("bubblewrap", "runc"))
def node(request: pytest.FixtureRequest, counter: Path, layout: Layout) -> Iterator[Node]:
    """A node of a user that grants the level."""
    level = "bubblewrap" if request.param == "bubblewrap" else "container"
    with users.own_site() as site:
        equip(request, site, request.param)
        users.own_image(site, layout)
        for one in made(site, level, counter, users.program_for_all()):
            assert one.neighbour.lacks == ("cgroup",)
            yield one
