"""Images of this node: fetched when a lease asks for them, by digest, and kept.

Engines with a store of their own fetch by their own commands.  For the others, an image
is copied by skopeo(1) (or read from a layout on this node), checked and unpacked into a
tree by `launch/unpack.py`, and made read-only by who runs it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import marshal
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from rfaas.core import image as images
from rfaas.core.image import Image
from rfaas.errors import (
    ImageError,
    RfaasError,
    SystemCallError,
    UsageError,
)
from rfaas.paths import ensure_private_dir
from rfaas.proto.worker_messages import ContainerTask
from rfaas.sandbox import engines

if TYPE_CHECKING:
    from rfaas.config import ContainerConfig

WORDS_MAX = 16  # of what a command said last
LINE_MAX = 4000
FETCHES_MAX = 4  # at once: each is a process and a disk's bandwidth

# launch/unpack.py, which needs the standard library alone, in a process of its own
UNPACK = (
    "import marshal, sys; found = {'__name__': 'unpack'}; "
    "exec(marshal.load(open(sys.argv[1], 'rb')), found); sys.exit(found['main'](sys.argv[2:]))"
)

Say = Callable[[str], None]


class Images:
    """See the module's docstring; for one event loop."""

    def __init__(self, config: ContainerConfig) -> None:
        self._config = config
        self._fetching: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(FETCHES_MAX)

    async def task(self, reference: str, say: Say) -> ContainerTask:
        """What a worker needs to run in this image, which is here then.

        Args:
            say: told how far it is, where it takes time.

        Raises:
            UsageError: no such name, or one that this node does not take.
            ImageError: it is not here and cannot be fetched.
            SystemCallError: no engine, or the engine or the disk refuses.
        """
        if not reference:
            raise UsageError(
                "level container needs an image", hint=f"set lease.image; {images.HINT}"
            )
        image = images.parse(reference)
        before = str(image).partition("@")[0]
        patterns = self._config.images.split()
        if not any(fnmatchcase(before, pattern) for pattern in patterns):
            raise UsageError(
                f"this node takes no image {before}",
                hint=f"it takes {' '.join(patterns) or 'none'} (container.images)",
            )
        engine = engines.chosen(self._config.engine, sriov=self._config.docker_rdma_sriov)
        keys = self._config.__struct_fields__
        options = {key: _text(getattr(self._config, key)) for key in keys}
        async with self._fetching.setdefault(reference, asyncio.Lock()):
            if engine.takes_trees:
                root = await self._tree(image, say)
                return ContainerTask(engine=engine.name, image=str(image), root=root)
            name = self._name_for(engine, image)
            await self._stored(engine, name, options, say)
        return ContainerTask(engine=engine.name, image=name, options=options)

    def _name_for(self, engine: engines.Engine, image: Image) -> str:
        if image.is_layout:
            hint = "name one in a registry, or set container.engine to runc"
            raise UsageError(f"{engine.name} runs no image from a layout", hint=hint)
        registry = self._config.docker_registry
        if engine.name == "docker" and registry and "/" not in image.name:
            return f"{registry}/{image}"
        return str(image)

    async def _stored(
        self, engine: engines.Engine, name: str, options: dict[str, str], say: Say
    ) -> None:
        has = engine.has(name, options)
        if has and await self._is_stored(name, has):
            return
        self._check_may_fetch(name)
        for command in engine.pull(name, options):
            await self._fetch(name, command, say)
        if has:
            await self._is_stored(name, has)

    async def _is_stored(self, name: str, has: list[str]) -> bool:
        """Whether an engine has an image; engines keep and run those of any architecture.

        One question for both: who asks twice waits twice, with each lease.
        """
        status, lines = await self._run(has, None)
        if status:
            return False
        found = next((line for line in reversed(lines) if line.isalnum()), "")  # not a warning
        if found != (wanted := images.architecture(os.uname().machine)):
            kind = found or "no known architecture"
            raise UsageError(
                f"image {name} cannot be used: it is for {kind}, this node is {wanted}"
            )
        return True

    def _check_may_fetch(self, name: str) -> None:
        if self._config.pull == "never":
            raise ImageError(
                f"image {name} is not on this node, and it fetches none (container.pull)",
                hint="have it fetched there first",
            )

    # Trees

    async def _tree(self, image: Image, say: Say) -> str:
        store = self._config.store
        root = f"{store}/{image.digest.replace(':', '-')}"
        if os.path.isdir(f"{root}/tree"):
            return f"{root}/tree"
        ensure_private_dir(store)
        self._sweep()
        new = f"{root}.new-{os.getpid()}-{secrets.token_hex(4)}"
        os.mkdir(new, 0o700)
        try:
            layout = image.name
            if not image.is_layout:
                self._check_may_fetch(str(image))
                layout = f"{new}/layout"
                await self._fetch(str(image), self._copy(image, layout), say)
            say(f"unpacking {image.name}")
            await self._unpack(image, layout, f"{new}/tree")
            shutil.rmtree(f"{new}/layout", ignore_errors=True)
            os.unlink(f"{new}/tree.code")
            os.chmod(new, 0o755)
            os.rename(new, root)
        except OSError as error:
            if os.path.isdir(f"{root}/tree"):  # another executor of this node was faster
                return f"{root}/tree"
            raise SystemCallError(f"cannot keep image {image}: {error.strerror}") from None
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return f"{root}/tree"

    def _sweep(self) -> None:
        """Remove what an executor was unpacking when it was killed."""
        for name in os.listdir(self._config.store):
            _, new, owner = name.partition(".new-")
            pid = owner.partition("-")[0]
            if new and not os.path.exists(f"/proc/{pid}"):
                shutil.rmtree(f"{self._config.store}/{name}", ignore_errors=True)

    def _copy(self, image: Image, layout: str) -> list[str]:
        if shutil.which("skopeo") is None:
            raise SystemCallError(
                "skopeo, which fetches images, is not installed on this node",
                hint="as root: apt-get install skopeo; or set container.engine to podman",
            )
        command = ["skopeo", "copy", "--preserve-digests"]
        if self._config.registry_auth:
            command += ["--authfile", self._config.registry_auth]
        if self._config.registry_insecure:
            command += ["--src-tls-verify=false"]
        return [*command, f"docker://{image}", f"oci:{layout}:image"]

    async def _unpack(self, image: Image, layout: str, tree: str) -> None:
        """In a process of its own: what is unpacked comes from strangers."""
        wanted = images.architecture(os.uname().machine)
        digest = image.digest if image.is_layout else ""  # skopeo has checked what it fetched
        if getattr(sys, "frozen", False):  # PyInstaller's binary; see packaging/boot/binary.py
            unpacker = [sys.executable, "--unpack-image"]
        else:
            code = f"{tree}.code"  # as a file: what runs it need not find this program's modules
            _write_unpacker(code)
            unpacker = [sys.executable, "-I", "-S", "-c", UNPACK, code]
        status, lines = await self._run([*unpacker, layout, tree, wanted, digest], None)
        if status:
            text = lines[-1] if lines else f"unpacking ended with status {status}"
            kind: type[RfaasError] = SystemCallError if status == 71 else UsageError
            raise kind(f"image {image} cannot be used: {text}")

    # Commands

    async def _fetch(self, name: str, command: list[str], say: Say) -> None:
        say(f"fetching {name}")
        async with self._slots:
            status, lines = await self._run(command, say)
        if status:
            what = f"{command[0]} cannot fetch image {name}"
            raise images.refusal(what, os.uname().machine, status, lines)

    async def _run(self, command: Sequence[str], say: Say | None) -> tuple[int, list[str]]:
        """Run a command to its end; its status, and what it said last."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            raise SystemCallError(f"cannot run {command[0]}: {error.strerror}") from None
        lines: list[str] = []
        try:
            await asyncio.wait_for(self._read(process, lines, say), self._config.pull_timeout_s)
            return await process.wait(), lines
        except asyncio.TimeoutError:
            raise ImageError(
                f"{command[0]} did not end within {self._config.pull_timeout_s:g} s",
                hint="is the registry slow? container.pull_timeout_s is the limit",
            ) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _read(
        self, process: asyncio.subprocess.Process, lines: list[str], say: Say | None
    ) -> None:
        assert process.stdout is not None
        rest = b""
        while data := await process.stdout.read(65536):
            *found, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            rest = rest[-LINE_MAX:]
            for line in filter(None, (one.decode("utf-8", "replace").strip() for one in found)):
                lines.append(line[:LINE_MAX])
                del lines[:-WORDS_MAX]
                if say is not None:
                    say(line[:LINE_MAX])
        if rest.strip():
            lines.append(rest.decode("utf-8", "replace").strip())


def _write_unpacker(path: str) -> None:
    """The code of launch/unpack.py, from wherever this program's modules come."""
    name = "rfaas.launch.unpack"
    found = importlib.util.find_spec(name)
    code = getattr(found.loader, "get_code", None) if found is not None else None
    if code is None:
        raise SystemCallError(f"{name} cannot be found")
    with open(path, "wb") as file:
        marshal.dump(code(name), file)


def _text(value: object) -> str:
    """A value of the configuration, for engines; "" is false as well."""
    return ("true" if value else "") if isinstance(value, bool) else str(value)
