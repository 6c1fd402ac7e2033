"""A PC in software (qemu without KVM) with Debian's own kernel: needs no compiling, is slow.

The kernel's package is downloaded once, by name, and unpacked below the cache; nothing
is installed.  The PC's first program runs from a small archive with busybox and the
modules; the host's root comes by 9p.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from guest import SCRIPTS, MachineError, Request, say

MODULES = (
    *("virtio_pci", "virtio_console", "9p", "9pnet_virtio", "overlay", "veth"),
    *("crc32_generic", "ib_uverbs", "rdma_ucm", "rdma_rxe"),
)
PACKAGES = {  # program: package
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "cpio": "cpio",
}
XZ_MAGIC = b"\xfd7zXZ\0"
SHARE_BYTES_MAX = 512000  # msize: the most that 9p over virtio carries at once


class Emulated:
    """Debian's kernel `package` in qemu; what it needs is kept in `cache`."""

    ports = ("/dev/vport*p1", "/dev/vport*p2", "/dev/vport*p3")
    can_two_hosts = False  # up to 6.12 SoftRoCE works in the first network namespace alone

    def __init__(self, cache: Path, package: str) -> None:
        missing = [PACKAGES[name] for name in PACKAGES if not shutil.which(name)]
        if missing:
            raise MachineError(
                f"this machine lacks {', '.join(missing)}\n"
                f"hint: as root, run: apt-get install {' '.join(missing)}; or `make softroce`"
            )
        cache.mkdir(parents=True, exist_ok=True)
        with (cache / "emulated.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.home = fetch(package, cache)
            self.archive = pack(self.home)

    def mounts(self, request: Request) -> list[str]:
        """The modules, where modprobe looks, and what is writable."""
        at = "$root/lib/modules/$(uname -r)"
        return [
            f'mkdir -p "{at}"',
            f'mount --bind {shlex.quote(f"/host{modules_of(self.home)}")} "{at}"',
            *(
                f"mount -t 9p -o trans=virtio,version=9p2000.L,cache=none,msize={SHARE_BYTES_MAX} "
                f"writable{number} $root{shlex.quote(path)}"
                for number, path in enumerate(request.writable)
            ),
        ]

    def command(self, request: Request, job: Path, descriptors: Sequence[int]) -> list[str]:
        """qemu's command line."""
        words = f"console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable job={job}"
        command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]
        command += ["-display", "none", "-serial", "stdio", "-accel", "tcg,thread=multi"]
        command += ["-cpu", "max", "-smp", str(request.cpus), "-m", f"{request.memory_mib}M"]
        command += ["-kernel", str(self.home / "kernel"), "-initrd", str(self.archive)]
        command += ["-append", words]
        shares = {"host": ("/", ",readonly=on")}
        shares |= {f"writable{n}": (path, "") for n, path in enumerate(request.writable)}
        for tag, (path, options) in shares.items():
            place = path.replace(",", ",,")  # qemu's way to quote a comma
            model = "security_model=none,multidevs=remap"
            command += ["-virtfs", f"local,path={place},mount_tag={tag},{model}{options}"]
        command += ["-device", "virtio-serial-pci,max_ports=8"]
        for port, pipe in enumerate(descriptors, start=1):
            command += ["-add-fd", f"fd={pipe},set={port}"]
            command += ["-chardev", f"file,id=line{port},path=/dev/fdset/{port},append=on"]
            command += ["-device", f"virtserialport,nr={port},chardev=line{port}"]
        return command


def modules_of(home: Path) -> Path:
    """The directory of modules of an unpacked kernel; its name is the kernel's version."""
    (found,) = (home / "lib/modules").iterdir()
    return found


def fetch(package: str, cache: Path) -> Path:
    """The unpacked kernel of a Debian package: `kernel`, `lib/modules/VERSION`."""
    home = cache / package
    if home.exists():
        return home
    with tempfile.TemporaryDirectory(dir=cache, prefix="new-") as name:
        place = Path(name)
        # linux-image-amd64 is empty and depends on the real one.
        depends = output("apt-cache", "depends", package)
        found = re.search(r"Depends: (linux-image-[0-9]\S*)", depends)
        real = found[1] if found else package
        say(f"downloading {real}")
        output("apt-get", "-q", "download", real, cwd=place)
        (archive,) = place.glob("*.deb")
        output("dpkg-deb", "-x", str(archive), str(place / "tree"))
        made = place / "made"
        (made / "lib").mkdir(parents=True)
        modules = next(path for path in place.glob("tree/*lib/modules"))
        modules.rename(made / "lib/modules")
        version = modules_of(made).name
        output("depmod", "-b", str(made), version)
        image = (place / f"tree/boot/vmlinuz-{version}").read_bytes()
        (made / "kernel").write_bytes(unpacked(image))
        made.rename(home)
    return home


def unpacked(image: bytes) -> bytes:
    """The kernel inside a compressed image, which the slow PC then need not unpack."""
    at = image.find(XZ_MAGIC)
    if at >= 0:
        try:
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(image[at:])
        except lzma.LZMAError:
            pass  # not its beginning: the image unpacks itself
    return image


def pack(home: Path) -> Path:
    """The archive with the first program, busybox and the modules in their order."""
    init = (SCRIPTS / "init-emulated").read_text()
    busybox = Path(shutil.which("busybox") or "busybox")
    recipe = f"{init}{MODULES}{busybox.stat()}"
    target = home / f"initramfs-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=home, prefix="new-") as name:
        root = Path(name, "root")
        for folder in ("bin", "modules"):
            (root / folder).mkdir(parents=True)
        shutil.copy2(busybox, root / "bin/busybox")
        (root / "init").write_text(init)
        (root / "init").chmod(0o755)
        order = []
        for file in modules_in_order(home):
            data = file.read_bytes()
            stem = file.name.removesuffix(".xz")
            (root / "modules" / stem).write_bytes(
                lzma.decompress(data) if file.suffix == ".xz" else data
            )
            order.append(stem)
        (root / "modules/order").write_text("\n".join(order))
        archive = Path(name, "archive")
        output("sh", "-c", f"find . | cpio -o -H newc >{shlex.quote(str(archive))}", cwd=root)
        archive.rename(target)
    return target


def modules_in_order(home: Path) -> list[Path]:
    """The files of MODULES and of all that they depend on, each after what it needs."""
    version = modules_of(home).name
    files: dict[Path, None] = {}
    for module in MODULES:
        plan = output("modprobe", "-d", str(home), "-S", version, "--show-depends", module)
        for line in plan.splitlines():
            if line.startswith("insmod "):
                files[Path(line.split()[1])] = None
    return list(files)


def output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
    return done.stdout
