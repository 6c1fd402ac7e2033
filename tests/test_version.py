"""`rfaas version`."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import msgpack
import msgspec
import pytest

import rfaas
from rfaas.admin import about
from rfaas.config_sources import CONFIG_FORMAT
from rfaas.diagnose import rdma_core
from rfaas.proto.messages import PROTOCOL_VERSION

TREE = Path(__file__).resolve().parent.parent
RFAAS = str(TREE / "rfaas.py")


def test_json_has_everything() -> None:
    run = subprocess.run([RFAAS, "version", "--json"], capture_output=True, check=True)
    facts = json.loads(run.stdout)
    assert facts["version"] == rfaas.__version__
    assert (facts["protocol"], facts["configuration"]) == (PROTOCOL_VERSION, CONFIG_FORMAT)
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (facts["runs_as"], facts["path"]) == ("source tree", str(TREE))
    assert facts["carried"]["msgspec"] == msgspec.__version__
    assert facts["carried"]["msgpack"] == ".".join(map(str, msgpack.version))
    assert set(facts["rdma_core"]) == set(rdma_core.LIBRARIES)


def test_text_is_made_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    verbs = rdma_core.Library("/usr/lib/libibverbs.so.1.14.44.0", "44.0")
    monkeypatch.setattr(about, "library", lambda name: verbs if "verbs" in name else None)
    lines = about.text(about.about()).splitlines()
    assert lines[0] == f"rfaas {rfaas.__version__}"
    (rdma,) = (line for line in lines if line.startswith("  rdma-core"))
    assert rdma.split(maxsplit=1)[1] == (
        "libibverbs.so.1 44.0; no librdmacm.so.1 (for RDMA: Debian's libibverbs1 and librdmacm1, "
        "Red Hat's libibverbs, librdmacm)"
    )


def test_a_library_that_is_there_and_one_that_is_not() -> None:
    libc = rdma_core.library("libc.so.6")
    assert libc is not None
    assert Path(libc.path).name.startswith("libc.so.6")
    assert libc.version == ""  # its file's name says nothing
    assert rdma_core.library("libnothing.so.9") is None


@pytest.mark.skipif(
    rdma_core.library("libibverbs.so.1") is None, reason="no rdma-core; apt-get install libibverbs1"
)
def test_the_version_of_rdma_core() -> None:
    verbs = rdma_core.library("libibverbs.so.1")
    assert verbs is not None
    assert re.fullmatch(r"\d+\.\d+", verbs.version)


def test_a_broken_configuration_is_no_obstacle(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    file.write_text("nonsense")
    run = subprocess.run(
        [RFAAS, "version"], env={"RFAAS_CONFIG": str(file)}, capture_output=True, check=False
    )
    assert (run.returncode, run.stderr) == (0, b"")
