"""`rfaas devices` and `rfaas doctor` as commands; other hosts through a stand-in for ssh."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from rfaas.config import Config, load
from rfaas.diagnose import hosts, report
from rfaas.diagnose.records import Node
from rfaas.errors import UsageError
from tests.diagnose.machines import CARD, device, port

TREE = Path(__file__).resolve().parents[2]
RFAAS = str(TREE / "rfaas.py")
EX_UNAVAILABLE = 69
SSH = """#!/bin/sh
# Runs the command here, as ssh runs it there; some hosts fail in their own ways.
while [ "${1#-}" != "$1" ]; do shift 2; done
host=$1
shift
echo "Welcome to $host"
case $host in
    gone) echo 'ssh: connect to host gone port 22: No route to host' >&2; exit 255 ;;
    slow) exec sleep 60 ;;
    old) echo 'rfaas: invalid choice: devices' >&2; exit 2 ;;
esac
exec sh -c "$*"
"""


def rfaas(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RFAAS, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **variables},
    )


def program(place: Path, text: str) -> Path:
    place.write_text(text)
    place.chmod(0o755)
    return place


@pytest.fixture
def ssh(tmp_path: Path) -> str:
    return str(program(tmp_path / "ssh", SSH))


@pytest.fixture
def there(tmp_path: Path) -> str:
    """An rfaas that has a card, at a path with a blank in it."""
    said = msgspec.json.encode(Node(host="itself", devices=[CARD])).decode()
    (tmp_path / "a place").mkdir()
    return str(program(tmp_path / "a place/rfaas", f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n"))


def test_devices_of_many_hosts(ssh: str, there: str) -> None:
    done = rfaas(
        "devices", "--hosts", "n[08-10],gone", "--remote", ssh, "--remote-rfaas", f"'{there}'"
    )
    assert done.returncode == EX_UNAVAILABLE
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:4]] == [
        ["n08", "mlx5_0"],
        ["n09", "mlx5_0"],
        ["n10", "mlx5_0"],
    ]
    assert "gone: ssh ended with status 255: ssh: connect to host gone" in done.stderr


def test_devices_of_hosts_as_json(ssh: str, there: str) -> None:
    done = rfaas(
        "devices", "--json", "--hosts", "a,b", "--remote", ssh, "--remote-rfaas", f"'{there}'"
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["host"] for line in done.stdout.splitlines()] == ["a", "b"]


def test_a_host_that_does_not_answer_or_is_too_old(ssh: str) -> None:
    nodes = hosts.ask(["slow", "old"], ssh, "rfaas", timeout_s=0.5)
    assert [node.problem for node in nodes] == [
        "no answer within 0.5 s",
        "ssh ended with status 2: rfaas: invalid choice: devices",
    ]


def test_a_remote_command_that_is_not_there() -> None:
    (node,) = hosts.ask(["a"], "nonexistent-ssh", "rfaas", timeout_s=5)
    assert node.problem == "nonexistent-ssh: No such file or directory"


def test_srun_takes_words(tmp_path: Path, there: str) -> None:
    """No shell stands between: blanks must not be quoted."""
    srun = program(tmp_path / "srun", '#!/bin/sh\n[ "$1" = --nodelist=n1 ] && shift && exec "$@"\n')
    (node,) = hosts.ask(["n1"], f"{srun} --nodelist={{host}}", f"'{there}'", timeout_s=20)
    assert (node.host, node.problem, len(node.devices)) == ("n1", "", 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["a"]),
        ("a, b,a", ["a", "b"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[08-10,2]x,m", ["n08x", "n09x", "n10x", "n2x", "m"]),
        ("r[1-2]n[1-2]", ["r1n1", "r1n2", "r2n1", "r2n2"]),
        ("user@10.0.0.1", ["user@10.0.0.1"]),
    ],
)
def test_lists_of_hosts(text: str, expected: list[str]) -> None:
    assert hosts.expand(text) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "-oProxyCommand=x", "a b", "n[1-99999999]", "n[1-", "$(x)"]
)
def test_what_is_no_list_of_hosts(text: str) -> None:
    with pytest.raises(UsageError, match="--hosts"):
        hosts.expand(text)


def test_toml_is_what_the_configuration_takes(tmp_path: Path) -> None:
    slow = device(name="mlx5_1", ports=[port(speed="25 Gb/sec (1X EDR)", addresses=["10.0.0.3"])])
    down = device(name="mlx5_2", ports=[port(state="down")])
    block = report.toml_block(Node(host="node1", devices=[down, slow, CARD]))
    assert block.startswith("# node1: mlx5_0 (RoCE, 100 Gb/s, eth2 10.0.0.2)\n")
    (tmp_path / "rfaas.toml").write_text(block)
    config = load(str(tmp_path / "rfaas.toml"), environ={"HOME": str(tmp_path)}).config
    assert config != Config()
    assert (config.rdma.device, config.lane.transport) == ("mlx5_0", "verbs")


def test_no_block_without_a_usable_device() -> None:
    broken = device(ports=[port(addresses=["fe80::1"])])
    assert report.toml_block(Node(host="node1", devices=[broken])) == ""


def test_table_says_what_is_wrong() -> None:
    one = device(
        limits=None,
        limits_unknown="no libibverbs",
        ports=[port(is_netdev_here=False), port(number=2, is_netdev_up=False)],
    )
    node = Node(host="node1", devices=[one], rdma_core="the system's rdma-core 44.0")
    text = report.devices_table([node])
    assert "node1: the system's rdma-core 44.0" in text
    assert "mlx5_0/1" in text
    assert "eth2 (elsewhere)" in text
    assert "eth2 (down)" in text
    assert "::ffff:10.0.0.2" in text
    assert "mlx5_0: limits are unknown: no libibverbs" in text


@pytest.mark.skipif(os.path.exists("/sys/class/infiniband"), reason="this machine has RDMA")
def test_no_device_is_said() -> None:
    done = rfaas("devices")
    assert (done.returncode, done.stdout) == (EX_UNAVAILABLE, "")
    assert "no RDMA device" in done.stderr
    assert "hint: `rfaas doctor`" in done.stderr
    done = rfaas("devices", "--json")
    assert done.returncode == EX_UNAVAILABLE
    assert json.loads(done.stdout)["devices"] == []


def test_doctor_on_this_machine() -> None:
    done = rfaas("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1].startswith("shm can work; verbs can")
    said = json.loads(rfaas("doctor", "--json").stdout)
    assert said["works"]["shm"] is True
    assert {"host", "works", "findings", "facts"} == set(said)
    needs = rfaas("doctor", "--need", "verbs").returncode
    assert needs == (0 if said["works"]["verbs"] else EX_UNAVAILABLE)


def test_doctor_counts_with_the_configuration() -> None:
    done = rfaas("doctor", "--slot-bytes", "64KiB", "--slots", "8")
    assert "8 slots of 64 KiB" in done.stdout


@pytest.mark.rdma
def test_devices_in_the_guest(rdma_ends: object) -> None:
    done = rfaas("devices", "--json")
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout)["devices"]:
        assert found["limits"]["inline_bytes_max"] >= 16, found["limits_unknown"]
        assert found["ports"][0]["gids"]
    assert 'transport = "verbs"' in rfaas("devices", "--toml").stdout
    assert rfaas("doctor", "--need", "verbs").returncode == 0
