"""Machines that forbid what the zipapp would rather do: memory files, caches, Pythons."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.one_file import LIBRARY, PYTHON, Copy, require_private_mounts, run

NO_PROC = "mount -t tmpfs none /proc"
STARTS = 100
EX_UNAVAILABLE = 69
EX_OSERR = 71


def tmpfs(path: Path | str, options: str = "") -> str:
    return f"mount -t tmpfs {f'-o {options}' if options else ''} none {path}"


def test_memory_files_that_may_not_be_run(copy: Copy) -> None:
    """vm.memfd_noexec = 2, Linux 6.3: what is only mapped is still allowed."""
    knob = "/proc/sys/vm/memfd_noexec"
    require_private_mounts()
    if not os.path.exists(knob):
        pytest.skip("this kernel has no vm.memfd_noexec: it came with Linux 6.3")
    script = f'echo 2 >{knob}; test "$(cat {knob})" = 2 && exec "$@"'
    before = ("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh")
    done = copy.run("call", str(LIBRARY), "echo", "-", data=b"mapped", before=before)
    assert (done.status, done.out) == (0, b"mapped"), done.err
    assert list(copy.home.iterdir()) == [], "no cache was needed"


def test_without_proc_modules_come_from_the_cache(copy: Copy) -> None:
    done = copy.run_with_mounts(NO_PROC, "config", "show")
    assert (done.status, done.err) == (0, "")
    (cached,) = (copy.home / ".cache/rfaas").iterdir()
    assert cached.name.startswith("msgspec._core-")
    assert (copy.home / ".cache/rfaas").stat().st_mode & 0o777 == 0o700
    before = cached.stat().st_mtime_ns
    assert copy.run_with_mounts(NO_PROC, "config", "show").status == 0
    assert cached.stat().st_mtime_ns == before, "used, not written again"


def test_without_proc_a_worker_says_what_it_lacks(copy: Copy) -> None:
    done = copy.run_with_mounts(NO_PROC, "call", str(LIBRARY), "echo")
    assert done.status == EX_OSERR, done.err
    assert "this node has no /proc" in done.err


def test_what_is_in_the_cache_is_compared_before_it_is_loaded(copy: Copy) -> None:
    assert copy.run_with_mounts(NO_PROC, "config", "show").status == 0
    (cached,) = (copy.home / ".cache/rfaas").iterdir()
    good = cached.read_bytes()
    for wrong in (b"", good[:4096], bytes(len(good))):
        cached.write_bytes(wrong)
        assert copy.run_with_mounts(NO_PROC, "config", "show").status == 0
        assert cached.read_bytes() == good


@pytest.mark.slow
def test_a_hundred_first_starts_at_once(copy: Copy) -> None:
    require_private_mounts()
    command = ["unshare", "-m", "sh", "-c", f'{NO_PROC}; exec "$@"', "sh", str(copy.path)]
    starts = [
        subprocess.Popen(
            [*command, "config", "show"],
            env=copy.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for _ in range(STARTS)
    ]
    ends = [(start.communicate()[0], start.returncode) for start in starts]
    assert [out for out, status in ends if status != 0] == []
    names = [file.name for file in (copy.home / ".cache/rfaas").iterdir()]
    assert len(names) == 1, "and nothing half-written is left"


@pytest.mark.parametrize("fault", ["read-only", "full", "somebody else's", "writable", "noexec"])
def test_a_cache_that_cannot_be_used_is_passed_over(copy: Copy, fault: str) -> None:
    cache, other = copy.home / ".cache", copy.folder / "runtime"
    cache.mkdir()
    other.mkdir(mode=0o700)
    mounts = {
        "read-only": tmpfs(cache, "ro"),
        "full": f"{tmpfs(cache, 'size=1m')}\nhead -c 900k /dev/zero >{cache}/filler",
        "noexec": tmpfs(cache, "noexec"),
        "somebody else's": f"mkdir {cache}/rfaas; chown 12345 {cache}/rfaas",
        "writable": f"mkdir {cache}/rfaas; chmod 777 {cache}/rfaas",
    }[fault]
    script = f"{mounts}\n{NO_PROC}"
    done = copy.run_with_mounts(script, "config", "show", environ={"XDG_RUNTIME_DIR": str(other)})
    assert (done.status, done.err) == (0, "")
    assert len(list((other / "rfaas-cache").iterdir())) == 1
    if (cache / "rfaas").exists():
        assert list((cache / "rfaas").iterdir()) == []


def test_no_place_at_all_says_which_were_tried(copy: Copy) -> None:
    places: list[Path | str] = [copy.home, "/var/tmp", "/dev/shm"]
    kept = copy.folder / "kept"
    kept.mkdir()
    script = "\n".join(
        [
            f"cp {copy.path} {kept}",
            f"mount --bind {kept} /mnt",
            *(tmpfs(place, "noexec") for place in (*places, "/tmp")),
            NO_PROC,
            'shift; set -- /mnt/rfaas "$@"',
        ]
    )
    done = copy.run_with_mounts(script, "config", "show")
    assert done.status == EX_OSERR, done.err
    for place in (f"{copy.home}/.cache/rfaas", "/tmp/rfaas-cache", "/var/tmp/rfaas-cache"):
        assert place in done.err
    assert "hint: set XDG_CACHE_HOME" in done.err
    assert "Traceback" not in done.err


def test_read_only_home_and_noexec_tmp_do_no_harm(copy: Copy) -> None:
    kept = copy.folder / "kept"
    kept.mkdir()
    library = kept / LIBRARY.name
    library.write_bytes(LIBRARY.read_bytes())
    script = "\n".join(
        [
            f"cp {copy.path} {kept}; mount --bind {kept} /mnt",
            tmpfs(copy.home, "ro"),
            tmpfs("/tmp", "noexec"),
            'shift; set -- /mnt/rfaas "$@"',
        ]
    )
    done = copy.run_with_mounts(
        script,
        "call",
        f"/mnt/{LIBRARY.name}",
        "echo",
        "-",
        data=b"read-only",
        environ={"RFAAS_RUNTIME_DIR": "/tmp/run"},
    )
    assert (done.status, done.out) == (0, b"read-only"), done.err


# Pythons ------------------------------------------------------------------


def fake_python(folder: Path, name: str, version: str) -> None:
    """A Python that says that it is another one."""
    folder.mkdir(exist_ok=True)
    code = f"import sys; sys.version_info = {tuple(map(int, version.split('.')))!r}; "
    code += f"sys.version = {version!r}; exec(sys.argv.pop(1))"
    # $5: the code that the header hands to python -I -S -c
    script = f'#!/bin/sh\ncode=$4\nshift 4\nexec {PYTHON} -I -S -c "{code}" "$code" "$@"\n'
    file = folder / name
    file.write_text(script)
    file.chmod(0o755)


def path_with(copy: Copy, folder: Path) -> dict[str, str]:
    """A PATH of `folder` and the few tools that the header uses, and no RFAAS_PYTHON."""
    del copy.environ["RFAAS_PYTHON"]
    return {"PATH": str(folder)}


def test_python_too_old(copy: Copy) -> None:
    fake_python(copy.folder / "bin", "python3", "3.9.2")
    done = copy.run("--version", environ=path_with(copy, copy.folder / "bin"))
    assert done.status == EX_UNAVAILABLE, done.err
    assert f"needs CPython {sys.version_info[0]}.{sys.version_info[1]}" in done.err
    assert "is 3.9.2" in done.err
    assert "rfaas-linux-x86_64, which needs none" in done.err


def test_python_too_old_beside_one_that_is_not(copy: Copy) -> None:
    folder = copy.folder / "bin"
    fake_python(folder, "python3", "3.9.2")
    newer = folder / f"python3.{sys.version_info[1]}"
    newer.write_text(f'#!/bin/sh\nexec {PYTHON} "$@"\n')
    newer.chmod(0o755)
    done = copy.run("--version", environ=path_with(copy, folder))
    assert (done.status, done.out[:6]) == (0, b"rfaas "), done.err


def test_the_python_that_is_named_is_not_there(copy: Copy) -> None:
    done = copy.run("--version", environ={"RFAAS_PYTHON": "/nonexistent/python"})
    assert done.status == EX_UNAVAILABLE
    assert "there is no /nonexistent/python" in done.err


def test_no_python_at_all(copy: Copy) -> None:
    (copy.folder / "empty").mkdir()
    environ = copy.environ | path_with(copy, copy.folder / "empty")
    environ.pop("RFAAS_PYTHON", None)
    done = run([str(copy.path), "--version"], environ=environ)
    assert done.status == EX_UNAVAILABLE
    assert "there is no python3 here" in done.err
    assert "rfaas-linux-x86_64, which needs none" in done.err
