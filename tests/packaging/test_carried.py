"""Whose rdma-core the binary takes: the system's, or its own where that lacks any of it.

That calls over RDMA work with its own is seen in tests/rdma/test_carried.py.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.harness.no_rdma_core import MACHINES, copy_in_a_folder_with_a_colon, require_carried
from tests.packaging.one_file import TREE, Copy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
NO_PROC = "mount -t tmpfs none /proc\n"


@pytest.fixture
def copied(binary: Path, tmp_path: Path) -> Copy:
    require_carried(binary)
    return copy_in_a_folder_with_a_colon(binary, tmp_path)


def test_the_systems_where_it_is_there(copied: Copy) -> None:
    if not os.path.isdir("/etc/libibverbs.d"):
        pytest.skip("no rdma-core here: apt-get install librdmacm1 ibverbs-providers")
    facts = json.loads(copied.run("version", "--json").out)
    for name, library in facts["rdma_core"].items():
        assert library["origin"] == "system"
        assert os.path.basename(library["path"]).startswith(name)
    version = facts["rdma_core"]["libibverbs.so.1"]["version"]
    assert f" load: the system's rdma-core {version}" in copied.run("doctor").out.decode()
    assert "; the system's\n" in copied.run("version").out.decode() + "\n"


@pytest.mark.parametrize("machine", MACHINES)
def test_its_own_where_the_system_lacks_some(copied: Copy, machine: str) -> None:
    mounts = MACHINES[machine]
    facts = json.loads(copied.run_with_mounts(mounts, "version", "--json").out)
    assert {library["origin"] for library in facts["rdma_core"].values()} == {"carried"}
    version = facts["rdma_core"]["libibverbs.so.1"]["version"]
    assert re.fullmatch(r"\d+\.\d+", version)
    said = copied.run_with_mounts(mounts, "doctor").out.decode()
    assert f"libibverbs.so.1 and librdmacm.so.1 load: carried rdma-core {version}" in said
    assert "apt-get install libibverbs1" not in said
    devices = json.loads(copied.run_with_mounts(mounts, "devices", "--json").out)
    assert devices["rdma_core"] == f"carried rdma-core {version}"
    text = copied.run_with_mounts(mounts, "version").out.decode()
    assert f"libibverbs.so.1 {version}; librdmacm.so.1 {version}; carried by this program" in text


def test_without_proc_there_is_none(copied: Copy) -> None:
    """It is loaded from memory by names below /proc; without one, no worker runs either."""
    done = copied.run_with_mounts(MACHINES["nothing"] + NO_PROC, "version", "--json")
    assert (done.status, done.err) == (0, "")
    assert set(json.loads(done.out)["rdma_core"].values()) == {None}


# What is carried, and under which licence ---------------------------------------


@pytest.fixture
def contents(binary: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """PyInstaller's view of the binary."""
    require_carried(binary)
    monkeypatch.syspath_prepend(str(TREE / "packaging"))
    monkeypatch.syspath_prepend(str(TREE / "build/dist/pyinstaller"))
    readers = importlib.import_module("PyInstaller.archive.readers")
    return readers.CArchiveReader(str(binary))


def test_licences_are_carried_along(contents: Any) -> None:
    texts = {name: contents.extract(name) for name in contents.toc if name.startswith("licenses/")}
    assert b"OpenIB" in texts["licenses/rdma-core/copyright"]
    assert b"LGPL" in texts["licenses/libnl3/copyright"]
    assert b"GNU LESSER GENERAL PUBLIC LICENSE" in texts["licenses/libnl3/LGPL-2.1"]


def test_the_list_of_what_is_carried_has_it(contents: Any) -> None:
    sbom = importlib.import_module("sbom")
    found = {one["name"]: one for one in sbom.rdma_components(contents)}
    with zipfile.ZipFile(io.BytesIO(contents.extract("rdma-core.zip"))) as archive:
        files = [name for name in archive.namelist() if ".so" in name]
        assert archive.testzip() is None
    assert set(found) == {name.partition(".so")[0] for name in files}
    for name, one in found.items():
        (licence,) = one["licenses"]
        is_netlink = name.startswith("libnl-")
        assert licence["expression"] == (
            "LGPL-2.1-only" if is_netlink else "GPL-2.0-only OR Linux-OpenIB"
        )
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", one["version"])
        assert one["purl"] == f"pkg:generic/{name.lower()}@{one['version']}"
    names = {name.partition("-rdmav")[0] for name in found}
    assert {"libibverbs", "librdmacm", "libnl-3", "libnl-route-3", "libmlx5", "librxe"} <= names
