"""`rfaas call`: bytes in, bytes out, wherever they come from and go to."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from tests.harness.site import Site


@pytest.fixture
def data(seed: int) -> bytes:
    """Every byte value, and more than a page."""
    return random.Random(seed).randbytes(50_000) + bytes(range(256))


@pytest.fixture(params=["private", "served"])
def anywhere(request: pytest.FixtureRequest, site: Site) -> Site:
    """A site where nobody serves, and one where both roles do."""
    if request.param == "served":
        site.start("all")
    return site


def test_file_to_stdout(anywhere: Site, shipped: Path, data: bytes) -> None:
    file = anywhere.path / "input.bin"
    file.write_bytes(data)
    done = anywhere.run("call", shipped, "echo", file)
    assert (done.returncode, done.stdout) == (0, data)
    assert done.stderr == b""


def test_stdin_to_stdout(anywhere: Site, shipped: Path, data: bytes) -> None:
    done = anywhere.run("call", shipped, "echo", "-", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_output_file_repeat_and_stats(anywhere: Site, shipped: Path, data: bytes) -> None:
    file, output = anywhere.path / "input.bin", anywhere.path / "out.bin"
    file.write_bytes(data)
    done = anywhere.run("call", shipped, "echo", file, "-o", output, "--repeat", "50", "--stats")
    assert (done.returncode, done.stdout) == (0, b"")
    assert output.read_bytes() == data
    text = done.stderr.decode()
    assert re.search(r"connected to .+ in .*, leased in .*, first result in ", text)
    assert re.search(r"49 more calls: min .*, median .*, p99 .*, max ", text)


def test_input_may_be_left_out(site: Site, shipped: Path) -> None:
    done = site.run("call", shipped, "echo")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_empty_input_from_file_and_stdin(site: Site, shipped: Path) -> None:
    for arguments in (("/dev/null",), ("-",)):
        done = site.run("call", shipped, "echo", *arguments)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_slot_grows_with_the_input(site: Site, shipped: Path) -> None:
    """`lane.slot_bytes` is 64 KiB on this site."""
    data = bytes(1_000_000) + b"end"
    done = site.run("call", shipped, "echo", "-", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (0, data, b"")


def test_functions_output_stays_out_of_ours(site: Site, hostile: Path) -> None:
    done = site.run("call", hostile, "print_noise", "--repeat", "2")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr.count(b"noise of a function on stdout\n") == 2
    assert done.stderr.count(b"noise of a function on stderr\n") == 2


def test_configuration_file_reaches_the_private_executor(site: Site, hostile: Path) -> None:
    """What --config and --set say of the executor holds for the one that `call` starts."""
    file = site.path / "site.toml"
    file.write_text("[executor]\ncores = 1\n")
    del site.environ["RFAAS_EXECUTOR_CORES"]
    done = site.run("call", "--config", file, "--cores", "2", hostile, "empty_output")
    assert done.returncode == 75
    assert b"1 core" in done.stderr
    done = site.run("call", "--set", "executor.cores=1", "--cores", "2", hostile, "empty_output")
    assert done.returncode == 75


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["echo", "no-such-file"], 2, "cannot read the input no-such-file: No such file"),
        (["echo", "/"], 2, "cannot read the input /: Is a directory"),
        (["echo", "-", "--repeat", "0"], 2, "--repeat must be at least 1, not 0"),
        (["echo", "-", "-o", "/no/such/dir/file"], 2, "cannot write the output /no/such/dir/file"),
        (["echo", "-", "--timeout", "-1"], 78, "client.call_timeout_s: value is too small (-1"),
        (["echo", "-", "--slots", "4097"], 78, "lane.slots: value is too large (4097), at most"),
        (["echo", "-", "--set", "lane.slots"], 2, "--set takes KEY=VALUE, not 'lane.slots'"),
        (["echo", "-", "--isolation", "magic"], 78, "lease.isolation: value is unknown ('magic')"),
    ],
)
def test_wrong_use(
    site: Site, shipped: Path, arguments: list[str], status: int, words: str
) -> None:
    done = site.run("call", shipped, *arguments)
    assert done.returncode == status, done.stderr
    assert words in done.stderr.decode()
    assert done.stdout == b"" or "-o" in arguments


def test_reader_that_goes_away(site: Site, shipped: Path) -> None:
    """`rfaas call ... | head -c 1`: no traceback, and everything is taken away."""
    file = site.path / "input.bin"
    file.write_bytes(bytes(4_000_000))
    call = site.command("call", shipped, "echo", file)
    assert call.process.stdout
    call.process.stdout.read(1)
    call.process.stdout.close()
    assert call.wait() == 141
    assert call.stderr == ""
