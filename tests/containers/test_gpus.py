"""GPUs in bubblewrap and in containers, by devices that stand in for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rfaas.errors import UsageError
from tests.containers.conftest import BASE, Node
from tests.functions.build import build_library
from tests.harness import gpus
from tests.harness.gpus import use, variable

pytestmark = pytest.mark.parametrize("made", BASE, indirect=True)


TWO = ["/dev/gpu0", "/dev/gpu1"]


@pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0,
    reason="the test makes a /dev of its own as root, by unshare of util-linux",
)
def test_a_worker_has_its_own(made: Node, libraries: Path) -> None:
    probe = build_library(libraries, "gpus")
    made.site.set(executor__gpus=" ".join(TWO), executor__cores=3)
    made.executor = made.site.start_unready("executor", prefix=(*gpus.OWN_DEV, "gpu0 gpu1"))
    line = made.executor.lines.next()
    assert line is not None, made.executor.stderr
    with (
        made.session() as session,
        session.lease(library=probe, gpus=1) as first,
        session.lease(library=probe, gpus=1) as second,
        session.lease(library=probe) as without,
    ):
        assert {*first.gpus, *second.gpus} == set(TWO)
        for lease, other in ((first, second), (second, first)):
            assert variable(lease, "RFAAS_GPUS") == lease.gpus[0]
            assert variable(lease, "CUDA_VISIBLE_DEVICES") == ""
            assert use(lease, lease.gpus[0]) == "works"
            assert use(lease, other.gpus[0]) == "open: ENOENT"
        assert [use(without, path) for path in TWO] == ["open: ENOENT"] * 2
        assert variable(without, "RFAAS_GPUS") == "unset"


def test_one_elsewhere(made: Node, libraries: Path) -> None:
    """A container's is made beneath its own /dev, or it would lie in its image."""
    probe = build_library(libraries, "gpus")
    for (path,) in gpus.stand_ins(1):
        made.site.set(executor__gpus=path)
        made.start()
        with made.session() as session:
            if made.isolation == "bubblewrap":
                with session.lease(library=probe, gpus=1) as lease:
                    assert use(lease, path) == "works"
                continue
            with pytest.raises(UsageError, match=f"cannot have GPU {path}: it is not beneath /dev"):
                session.lease(library=probe, gpus=1)
