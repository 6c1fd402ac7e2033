"""`rfaas install` on a machine that systemd runs: a systemd of the test's own, in namespaces.

It has an overlay of this machine's file system and cgroups of its own, sees /sys and
/proc/sys without being able to write there, and runs no service but the journal's and
ours; with it goes everything that it started.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TREE = Path(__file__).resolve().parents[2]
SYSTEMD = "/lib/systemd/systemd"
PATIENCE_S = 120
CGROUPS = Path("/sys/fs/cgroup")

# $1: a directory for the machine, in which `program`, `library` and `script` lie
MACHINE = """
set -e
here=$1
mount --make-rprivate /
mkdir $here/layers $here/root
mount -t tmpfs tmpfs $here/layers
mkdir $here/layers/upper $here/layers/work
mount -t overlay overlay $here/root \
    -o lowerdir=/,upperdir=$here/layers/upper,workdir=$here/layers/work
root=$here/root
mount -t proc proc $root/proc
mount --bind $root/proc/sys $root/proc/sys
mount --rbind /sys $root/sys
for place in proc/sys sys; do mount -o remount,bind,ro $root/$place; done
# The hierarchies anew, as they are below our own cgroups: those of the machine stay unseen.
cgroups=$(grep -E '^[^ ]+ /sys/fs/cgroup/[^ ]+ cgroup2? ' /proc/self/mounts || :)
if [ "$cgroups" ]; then mount -t tmpfs tmpfs $root/sys/fs/cgroup
else mount -t cgroup2 cgroup2 $root/sys/fs/cgroup; fi
echo "$cgroups" | while read -r _ place type options _; do
    [ "$place" ] || continue
    mkdir -p $root$place
    options=$(echo "$options" | tr , '\n' | grep -vE '^(rw|ro|nosuid|nodev|noexec|relatime)$' || :)
    case $options in name=*) options="none,$options" ;; esac
    mount -t $type ${options:+-o $(echo $options | tr ' ' ,)} $type $root$place
done
# A systemd takes the root that it sees for its own: it must be ours, everywhere.
! grep -v ':/$' /proc/self/cgroup
mount --bind /dev $root/dev
mount -t tmpfs tmpfs $root/run
mount -t tmpfs tmpfs $root/tmp
mkdir -p $root/mnt
mount --bind $here $root/mnt
units=$root/etc/systemd/system
mkdir -p $units
# Nothing of this machine's own is to be started again: no sysctl, no udev, no tmpfiles.
rm -rf $root/usr/lib/systemd/system/*.wants $units/*.wants
for target in sysinit basic; do
    printf '[Unit]\nDefaultDependencies=no\n' >$units/$target.target
done
cat >$units/machine.target <<END
[Unit]
DefaultDependencies=no
Requires=machine.service
Wants=systemd-journald.service dbus.socket
END
cat >$units/machine.service <<END
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=file:/mnt/out
StandardError=file:/mnt/out
ExecStart=/bin/sh -eux /mnt/script
ExecStopPost=/bin/sh -c 'echo "\\$EXIT_STATUS" >/mnt/status; kill -9 -1'
ExecStopPost=/bin/systemctl --force --force halt
END
# A root of its own: in a chroot no user namespace can be made, and so no sandbox.
mkdir $root/outside
cd $root
pivot_root . outside
exec chroot . env -i container=lxc PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    SYSTEMD_LOG_TARGET=null sh -c \
    'cd / && umount -l /outside && exec /lib/systemd/systemd --unit=machine.target'
"""

# The node's whole life with it; `set -e` and `-x` tell where it ended.
SCRIPT = """
as_rfaas() { runuser -u rfaas -- env RFAAS_RUNTIME_DIR=/run/rfaas "$@"; }
status() { systemctl show --property StatusText --value rfaas-executor; }
soon() { for i in $(seq 100); do "$@" && return; sleep 0.1; done; return 1; }
waits() { status | grep "waiting for the resource manager"; }
joined() { status | grep "executor .* ready"; }

/mnt/program install --systemd --role executor
systemctl is-active rfaas-executor
cmp /mnt/program /usr/local/bin/rfaas
waits                                  # active all the same
/mnt/program install --systemd --role resource-manager
soon joined

test "$(echo hello | as_rfaas rfaas call /mnt/library echo -)" = hello
test "$(echo hello | RFAAS_RUNTIME_DIR=/run/rfaas rfaas call /mnt/library echo -)" = hello
test "$(stat -c %U /run/rfaas/executor-$(uname -n).sock)" = rfaas

journalctl --flush || true
soon sh -c 'journalctl -u rfaas-executor -o cat | grep "^rfaas.executor: lease .* is over"'
journalctl -u rfaas-executor -p info -o cat | grep "is over"        # a priority that it has
journalctl -u rfaas-executor -p warning -o cat | grep "nobody answers"
! journalctl -u rfaas-executor -p warning -o cat | grep "is over"

kill -9 "$(systemctl show --property MainPID --value rfaas-executor)"
soon sh -c 'test "$(systemctl show --property NRestarts --value rfaas-executor)" = 1'
soon joined

printf 'lane.slots = 0\n' >/etc/rfaas.toml
! /mnt/program install --systemd --role executor --config /etc/rfaas.toml
mkdir -p /etc/rfaas && mv /etc/rfaas.toml /etc/rfaas/rfaas.toml
! systemctl restart rfaas-executor     # status 78: not tried again
sleep 1.5
test "$(systemctl show --property NRestarts --value rfaas-executor)" = 0
journalctl -u rfaas-executor -p err -o cat | grep "lane.slots: value is too small"
rm /etc/rfaas/rfaas.toml

systemctl restart rfaas-executor
/mnt/program install --systemd --role executor --uninstall
! systemctl cat rfaas-executor
test -z "$(pgrep -u rfaas -f -- '--role executor')"
"""


@pytest.fixture
def cgroups() -> Iterator[list[Path]]:
    """A cgroup of its own in every hierarchy; whoever is put there takes it along."""
    name = f"rfaas-test-{os.getpid()}"
    made = []
    try:
        for hierarchy in (path for path in CGROUPS.iterdir() if path.is_dir()):
            if not (hierarchy / "cgroup.procs").exists():
                continue
            (hierarchy / name).mkdir()
            made.append(hierarchy / name)
            for key in ("cpuset.cpus", "cpuset.mems"):
                if (hierarchy / key).exists() and (hierarchy / name / key).exists():
                    (hierarchy / name / key).write_text((hierarchy / key).read_text())
        yield made
    finally:
        for path in made:
            for place, _, _ in os.walk(path, topdown=False):
                os.rmdir(place)


@pytest.mark.slow
@pytest.mark.timeout(PATIENCE_S + 30)
@pytest.mark.parametrize("name", ["program", "binary"])
def test_a_machine_that_systemd_runs(
    name: str, tmp_path: Path, cgroups: list[Path], shipped: Path, request: pytest.FixtureRequest
) -> None:
    if os.geteuid() != 0 or not os.path.exists(SYSTEMD) or not shutil.which("unshare"):
        pytest.skip("it takes root, systemd and unshare(1)")
    shutil.copy(request.getfixturevalue(name), tmp_path / "program")
    shutil.copy(shipped, tmp_path / "library")
    (tmp_path / "script").write_text(SCRIPT)
    tmp_path.chmod(0o755)
    joins = "".join(f"echo $$ >{path}/cgroup.procs; " for path in cgroups)
    spaces = ["--cgroup", "--pid", "--mount", "--uts", "--ipc", "--fork", "--kill-child"]
    run = subprocess.run(
        [
            *("timeout", "--signal=KILL", str(PATIENCE_S), "sh", "-ec"),
            f'{joins} exec unshare {" ".join(spaces)} sh -c "$1" sh "$2"',
            *("sh", MACHINE, tmp_path),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if not (tmp_path / "out").exists():
        pytest.skip(f"no systemd can be started in namespaces here: {run.stderr.strip()[-200:]}")
    text = (tmp_path / "out").read_text()
    assert (tmp_path / "status").read_text() == "0\n", text[-4000:]
