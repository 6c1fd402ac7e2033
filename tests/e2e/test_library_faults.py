"""Libraries that cannot be loaded: what is wrong with them, and nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from rfaas.errors import FunctionNotFoundError, LibraryError, WorkerCrashedError
from tests.functions.build import build_library, build_needs_missing
from tests.harness.processes import Child, workers_of
from tests.harness.site import Site

E_MACHINE = 18  # offset in an ELF header: elf(5)
AARCH64 = 183


def call(site: Site, library: Path | str, function: str = "echo") -> tuple[int, str]:
    """Exit status and standard error of a call that must print nothing else."""
    done = site.run("call", library, function)
    assert done.stdout == b""
    return done.returncode, done.stderr.decode()


def test_no_such_library(site: Site) -> None:
    assert call(site, "no/such/lib.so") == (65, "rfaas: no such library: no/such/lib.so\n")
    status, text = call(site, "functions/libfunctions.so")
    assert status == 65
    assert "hint: `make -C functions` builds functions/libfunctions.so" in text


def test_library_that_may_not_be_read(site: Site) -> None:
    status, text = call(site, site.path)
    assert (status, text) == (65, f"rfaas: cannot read library {site.path}: Is a directory\n")


def test_not_an_elf_file(site: Site) -> None:
    source = site.path / "mine.c"
    source.write_text("int main(void) { return 0; }\n")
    status, text = call(site, source)
    assert status == 65
    assert text == (
        f"rfaas: library {source}: the library is not a 64-bit little-endian ELF file: "
        "it is text that begins with 'int main(void) { return 0; }'\n"
        "hint: build a shared library: cc -fPIC -shared -o libmine.so mine.c\n"
    )


def test_empty_library(site: Site) -> None:
    (site.path / "empty.so").touch()
    status, text = call(site, "empty.so")
    assert status == 65
    assert text.startswith("rfaas: library empty.so has 0 bytes, 1 to 536870912 are allowed")


def test_library_for_another_machine(site: Site, shipped: Path) -> None:
    image = bytearray(shipped.read_bytes())
    other = AARCH64 if image[E_MACHINE] != AARCH64 else 62
    image[E_MACHINE : E_MACHINE + 2] = other.to_bytes(2, "little")
    file = site.path / "other.so"
    file.write_bytes(image)
    status, text = call(site, file)
    assert status == 65
    assert text.startswith(f"rfaas: library {file}: the library is built for ")
    assert ", this node is " in text
    assert "hint: compile it on a node that is " in text


def test_truncated_library(site: Site, shipped: Path) -> None:
    file = site.path / "half.so"
    file.write_bytes(shipped.read_bytes()[:5000])
    status, text = call(site, file)
    assert status == 65
    assert "truncated" in text


def test_unresolved_symbols(site: Site, libraries: Path) -> None:
    status, text = call(site, build_library(libraries, "unresolved"))
    assert status == 65
    assert "the library cannot be loaded: undefined symbol: rfaas_test_defined_nowhere" in text
    assert "hint: link what it needs into it" in text


def test_library_that_needs_a_missing_one(site: Site, libraries: Path) -> None:
    status, text = call(site, build_needs_missing(libraries))
    assert status == 65
    assert "the library cannot be loaded: librfaas-test-missing.so: cannot open" in text
    assert "hint: link what it needs into it, or install it on the node" in text


def test_no_such_function(site: Site, shipped: Path) -> None:
    assert call(site, shipped, "ecko") == (
        65,
        "rfaas: the library has no function 'ecko'\nhint: did you mean echo?\n",
    )
    status, text = call(site, shipped, "qqqqqqqq")
    assert status == 65
    assert "hint: it has echo, " in text


@pytest.mark.parametrize("name", ["", "é", "x" * 100_000, "echo\0", None, 7])
def test_strange_function_names(site: Site, shipped: Path, name: str) -> None:
    with site.private_session() as session, session.lease(library=shipped) as lease:
        with pytest.raises(FunctionNotFoundError):
            lease.call(name, b"")
        with pytest.raises(FunctionNotFoundError):
            lease.submit(name, b"")
        assert bytes(lease.call("echo", b"x")) == b"x"


def test_constructor_that_crashes(site: Site, libraries: Path) -> None:
    status, text = call(site, build_library(libraries, "ctor_crash"), "never_called")
    assert status == 70
    assert "rfaas: the worker died while it loaded the library: killed by SIGSEGV" in text


def test_constructor_that_hangs(site: Site, libraries: Path) -> None:
    site.set(executor__load_timeout_s=0.3)
    library = build_library(libraries, "ctor_hang")
    status, text = call(site, library, "never_called")
    assert status == 65
    words = f"rfaas: library {library}: the library was not loaded within 0.3 s\nhint: does a cons"
    assert text.startswith(words)


@pytest.fixture
def both(site: Site) -> Child:
    """Manager and executor; loading must end within 300 ms."""
    site.set(executor__load_timeout_s=0.3)
    return site.start("all")


def test_failed_loads_leave_nothing_at_the_node(
    site: Site, both: Child, libraries: Path, shipped: Path
) -> None:
    """Neither worker nor core is kept by a lease whose library was refused."""
    with site.session() as session:
        for name, error in (
            ("ctor_crash", WorkerCrashedError),
            ("ctor_hang", LibraryError),
            ("unresolved", LibraryError),
        ):
            with pytest.raises(error):
                session.lease(cores=2, library=build_library(libraries, name))
            assert workers_of(both.pid) == []
            assert [node.cores_free for node in session.nodes()] == [2]
            assert session.leases() == []
        with session.lease(cores=2, library=shipped) as lease:
            assert bytes(lease.call("echo", b"x")) == b"x"


def test_library_goes_over_once(site: Site, both: Child, shipped: Path) -> None:
    with site.session() as session:
        with session.lease(library=shipped) as first, session.lease(library=shipped) as second:
            assert "send_library" in first.steps_ns
            assert "send_library" not in second.steps_ns
        with session.lease(library=shipped.read_bytes()) as third:
            assert "send_library" not in third.steps_ns
            assert bytes(third.call("echo", b"x")) == b"x"


def test_library_larger_than_the_cache(site: Site, shipped: Path) -> None:
    size = shipped.stat().st_size
    site.set(executor__library_cache_bytes_max=size - 1)
    status, text = call(site, shipped)
    assert status == 75
    assert text == (
        f"rfaas: a library of {size} bytes is too large for this node's cache of {size - 1}\n"
        "hint: raise executor.library_cache_bytes_max there\n"
    )
