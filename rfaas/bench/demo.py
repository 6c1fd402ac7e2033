"""`rfaas demo`: the whole path on this machine, each step said before it is done.

What it starts are real roles, as processes, in a directory of their own: no
cluster, no configuration and no earlier run has a part in it, and nothing of
it stays but two pictures.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from msgspec.structs import replace

import rfaas
from rfaas.bench import measure, picture
from rfaas.client import Lease, Session
from rfaas.config import Config
from rfaas.errors import InternalError, PeerLostError, UnavailableError, UsageError
from rfaas.launch import embedded
from rfaas.launch.local import command, program
from rfaas.native._worker import die_with_parent
from rfaas.units import format_ns

READY_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
DIRECTORY_BYTES_MAX = 60  # of the temporary directory, so that sockets in it have legal names
PICTURE_SIZE = (640, 480)
ECHO_BYTES = 64
HOT_CALLS = 50_000
HOT_CALLS_ONE_CPU = 100  # there each waits for the scheduler to change sides
WARM_CALLS = 300
COLD_ROUNDS = 15
TEXT_COLUMNS = 68

_LIBRARY = "functions/libfunctions.so"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(config: Config, output: str) -> int:
    """Show it all; pictures go to the directory `output`.  Returns the exit status.

    Raises:
        RfaasError: something is not as it should be; what was started is gone by then.
    """
    steps = _Steps()
    print(f"rFaaS {rfaas.__version__}, the whole path on this machine\n", flush=True)
    with _terminable(), ExitStack() as undo:
        private = undo.enter_context(_private_directory())
        undo.callback(steps.end)  # a line that was begun and not finished
        with steps.step("start a resource manager, which knows who leases which cores"):
            manager = undo.enter_context(
                _Role(private, "resource-manager", "--store", f"{private}/store.sqlite")
            )
        with steps.step("start an executor, which lends the cores of this machine"):
            executor = undo.enter_context(
                _Role(private, "executor", "--resource-manager", manager.address)
            )
        client = replace(config.client, resource_manager=manager.address, executor="")
        lease = replace(config.lease, isolation=_isolation(config, executor.address))
        with Session(replace(config, client=client, lease=lease)) as session:
            small = _use(session, steps, output)
            print()
            for line in _shown(small):
                print(f"    {line}")
            print()
            results = _measured(session, steps)
        with steps.step("end the executor and the resource manager"):
            executor.close()
            manager.close()
    print("\n" + "\n".join(_table(*results)) + "\n\n" + _next(output))
    return 0


def _isolation(config: Config, executor: str) -> str:
    """The level to lease: the configured one, but for what the default is where it cannot be held.

    What runs are this program's own functions.
    """
    client = replace(config.client, resource_manager="", executor=executor)
    with Session(replace(config, client=client)) as session:
        offered = str(session.status().facts["isolation"])
    if config.lease.isolation != "default" or "sandbox" in offered:
        return config.lease.isolation
    print("    (this machine cannot hold a sandbox: `rfaas doctor` says why)", flush=True)
    return "process"


def _use(session: Session, steps: _Steps, output: str) -> picture.Picture:
    """Lease, call, and check what comes back; the thumbnail."""
    with steps.step(f"lease one core, send {os.path.basename(_LIBRARY)} there, start a worker"):
        lease = session.lease(cores=1, library=_library())
    with lease:
        data = os.urandom(100_000)
        with steps.step(f"call echo with {len(data):,} random bytes, compare what comes back"):
            if lease.call("echo", data) != data:
                raise InternalError("echo returned other bytes than it was sent")
        with steps.step("paint a picture, {} x {}".format(*PICTURE_SIZE)):
            large = picture.landscape(*PICTURE_SIZE)
        small = _thumbnail(lease, steps, large)
        with steps.step(f"write both as PNG files into {output}"):
            _write(output, {"picture.png": large, "thumbnail.png": small})
        with steps.step("release the lease, which ends its worker and frees its core"):
            lease.close()
    return small


def _thumbnail(lease: Lease, steps: _Steps, large: picture.Picture) -> picture.Picture:
    ppm = picture.to_ppm(large)
    with steps.step(f"call thumbnail with its {len(ppm):,} bytes"):
        return picture.from_ppm(lease.call("thumbnail", ppm))


def _measured(session: Session, steps: _Steps) -> tuple[dict[str, Any], ...]:
    """The figures of `measure.hot`, `measure.warm` and `measure.cold`."""
    calls = HOT_CALLS if len(os.sched_getaffinity(0)) > 1 else HOT_CALLS_ONE_CPU
    with steps.step(f"measure hot calls of echo, {calls:,} of {ECHO_BYTES} bytes"):
        hot = measure.hot(session, ECHO_BYTES, calls)
    with steps.step(f"measure warm calls, {WARM_CALLS:,} to a worker that sleeps before each"):
        warm = measure.warm(session, ECHO_BYTES, WARM_CALLS)
    with steps.step(f"measure cold starts, {COLD_ROUNDS} with a new lease and worker each"):
        cold = measure.cold(session, COLD_ROUNDS)
    return hot, warm, cold


# What it says ------------------------------------------------------------


class _Steps:
    """One line for each step: what is done now, and then how long it took."""

    def __init__(self) -> None:
        self._number = 0
        self._open = False

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        self._number += 1
        self._open = True
        print(f"{self._number:>2}  {text} ".ljust(TEXT_COLUMNS, " "), end="", flush=True)
        start = time.monotonic_ns()
        yield
        print(f" {format_ns(time.monotonic_ns() - start):>10}", flush=True)
        self._open = False

    def end(self) -> None:
        if self._open:
            print(flush=True)
            self._open = False


def _shown(small: picture.Picture) -> Iterator[str]:
    """The thumbnail as lines that this terminal, or file, can show."""
    out, environ = sys.stdout, os.environ
    has_colours = environ.get("COLORTERM") in ("truecolor", "24bit") and "NO_COLOR" not in environ
    if out.isatty() and has_colours and out.encoding.lower().replace("-", "") == "utf8":
        return picture.to_blocks(small)
    return picture.to_ascii(small)


def _table(hot: dict[str, Any], warm: dict[str, Any], cold: dict[str, Any]) -> Iterator[str]:
    """The round trips, each after the bare exchange of the same bytes, measured in turn with it."""
    rows: tuple[tuple[str, str, Mapping[str, float], Callable[[float], str]], ...] = (
        ("hot", "bare shared memory, both sides spin", hot["raw_rtt_ns"], format_ns),
        ("", "rFaaS, native client", hot["hot_rtt_ns"], format_ns),
        ("", "rFaaS, Python: lease.call(...)", hot["python_rtt_ns"], format_ns),
        ("warm", "bare shared memory, both sides sleep", warm["raw_rtt_ns"], format_ns),
        ("", "rFaaS, native client", warm["warm_rtt_ns"], format_ns),
        ("cold", "lease, worker, library, first result", cold["total_ms"], _format_ms),
    )
    yield f"{f'Round trip of echo, {ECHO_BYTES} bytes':<50}{'median':>10}{'p99':>10}"
    for state, text, figures, form in rows:
        median, p99 = form(figures["median"]), form(figures["p99"])
        yield f"  {state:<6}{text:<42}{median:>10}{p99:>10}"


def _format_ms(time_ms: float) -> str:
    return format_ns(time_ms * 1e6)


def _next(output: str) -> str:
    name = program()
    return "\n".join(
        (
            f"Done. Nothing is left running; the pictures are in {output}.",
            "",
            "Next:",
            f"  echo hello | {name} call {_LIBRARY} echo -",
            f"  {name} serve --role all    the two roles until Ctrl-C; calls then go to them",
            f"  {name} bench hot           hot calls, with all figures",
            "  functions/README.md           write a function in one minute",
        )
    )


# What it starts and writes -----------------------------------------------


class _Role:
    """A process that has taken on a role and said that it is ready; ends with the `with` block."""

    def __init__(self, private: str, role: str, *flags: str) -> None:
        self.address = f"unix:{private}/{role}.sock"
        self._name = role
        environ = {name: value for name, value in os.environ.items() if name[:6] != "RFAAS_"}
        environ |= {
            "RFAAS_CONFIG": os.devnull,  # the demo is the same whatever is configured here
            "RFAAS_RUNTIME_DIR": private,
            "RFAAS_STATE_DIR": private,
        }
        self._log = f"{private}/{role}.log"
        # A signal in the middle of starting it would leave a process that nobody knows of.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)

        def in_child() -> None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            die_with_parent(signal.SIGINT, "rfaas")  # as Ctrl-C would, if the demo is killed

        try:
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    command("serve", "--role", role, "--address", self.address, *flags),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=environ,
                    start_new_session=True,  # Ctrl-C is for the demo, which then ends it
                    preexec_fn=in_child,  # noqa: PLW1509 - one thread runs here
                )
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                self._wait_until_ready()
            except BaseException:
                self.close()
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _wait_until_ready(self) -> None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], READY_TIMEOUT_S)[0]:
            raise UnavailableError(
                f"the {self._name} was not ready within {READY_TIMEOUT_S:g} s{self._last_words()}"
            )
        if not self._process.stdout.readline():
            raise PeerLostError(f"the {self._name} did not start{self._last_words()}")

    def _last_words(self) -> str:
        with open(self._log, errors="replace") as log:
            text = log.read()[-2000:].strip()
        return f"; it said:\n{text}" if text else ""

    def close(self) -> None:
        """End it, if need be by force; returns when it is gone.  Can be called twice."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> _Role:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """Have SIGTERM and a closed terminal end the demo as Ctrl-C does, with all it started."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _private_directory() -> Iterator[str]:
    chosen = os.fsencode(tempfile.gettempdir())
    within = None if len(chosen) <= DIRECTORY_BYTES_MAX else "/tmp"
    path = tempfile.mkdtemp(prefix="rfaas-demo-", dir=within)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _library() -> str | bytes:
    """The functions that ship: their file in the tree, or their bytes in a zip."""
    tree = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    path = os.path.join(tree, _LIBRARY)
    if os.path.exists(path) or not embedded.one_file():
        return path
    data: bytes = __loader__.get_data(path)  # type: ignore[name-defined]
    return data


def _write(output: str, pictures: dict[str, picture.Picture]) -> None:
    try:
        os.makedirs(output, exist_ok=True)
        for name, one in pictures.items():
            with open(os.path.join(output, name), "wb") as file:
                file.write(picture.to_png(one))
    except OSError as error:
        raise UsageError(
            f"cannot write pictures to {output}: {error.strerror}",
            hint="name another directory with --output",
        ) from None
