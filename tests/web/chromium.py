"""A real headless Chromium, driven over its own protocol through a pair of pipes.

No driver and no port: `--remote-debugging-pipe` takes JSON messages, each ended by
a NUL, on descriptor 3 and answers on 4.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import PATIENCE_S

NAMES = (
    "chromium-headless-shell",
    "headless_shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)
FLAGS = (
    "--headless",
    "--no-sandbox",  # as root, in a test: it shows our own page alone
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--no-zygote",
    "--single-process",
    "--remote-debugging-pipe",
    "--force-color-profile=srgb",
)


def program() -> str:
    """The browser, or a skip that says how to get one."""
    for name in NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium here: apt-get install chromium-headless-shell")


class Tab:
    """One page; every wait has an end."""

    def __init__(self, browser: Browser, target: str, session: str) -> None:
        self._browser = browser
        self._target = target
        self._session = session
        self.faults: list[str] = []  # what the page's console and policy complained of

    def call(self, method: str, **params: object) -> Any:
        return self._browser.call(method, params, self._session, self)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def close(self) -> None:
        self._browser.call("Target.closeTarget", {"targetId": self._target}, "", self)

    def evaluate(self, code: str) -> Any:
        """The value of an expression in the page; an element is only True."""
        found, fault = self._evaluated(code)
        if fault:
            pytest.fail(f"{code}: {fault}")
        return found

    def _evaluated(self, code: str) -> tuple[Any, Any]:
        code = f"(() => {{ const v = ({code}); return v instanceof Node ? true : v; }})()"
        done = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        return done["result"].get("value"), done.get("exceptionDetails")

    def until(self, code: str) -> Any:
        """The first true value of an expression, which may fail while a page loads."""
        give_up_at = time.monotonic() + PATIENCE_S
        while not (found := self._evaluated(code)[0]):
            if time.monotonic() > give_up_at:
                body = self.evaluate("document.body && document.body.innerText")
                pytest.fail(f"not within {PATIENCE_S:g} s: {code}; the page says:\n{body}")
            time.sleep(0.02)
        return found

    def resize(self, width: int, height: int, *, mobile: bool = False, scale: float = 1.0) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    def scheme(self, name: str) -> None:
        """ "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


class Browser:
    """The process and its pipes."""

    def __init__(self, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        # Above those that the shell is to make of them.
        commands_r, answers_w = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers))
        os.close(commands)
        os.close(answers)
        self._log = (profile / "chromium.log").open("wb")

        # The browser wants 3 and 4: a shell puts them there.
        script = f'exec "$@" 3<&{commands_r} 4>&{answers_w} {commands_r}<&- {answers_w}>&-'
        self.process = subprocess.Popen(
            ["bash", "-c", script, "bash", program(), *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands_r, answers_w),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        os.close(commands_r)
        os.close(answers_w)
        self._rest = b""
        self._number = 0

    def tab(self) -> Tab:
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        tab = Tab(self, target, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        return tab

    def call(
        self, method: str, params: object = None, session: str = "", tab: Tab | None = None
    ) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    pytest.fail(f"{method}: {answer['error']}")
                return answer["result"]
            if tab is not None:
                _note(tab, answer)

    def _next(self) -> dict[str, Any]:
        give_up_at = time.monotonic() + PATIENCE_S
        while b"\0" not in self._rest:
            left_s = max(0.0, give_up_at - time.monotonic())
            if not select.select([self._answers], [], [], left_s)[0]:
                pytest.fail(f"Chromium said nothing for {PATIENCE_S:g} s")
            data = os.read(self._answers, 1 << 20)
            if not data:
                pytest.fail(f"Chromium ended with status {self.process.wait()}")
            self._rest += data
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def close(self) -> None:
        os.close(self._commands)  # at its end the browser ends by itself
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._answers)
        self._log.close()


def _note(tab: Tab, event: dict[str, Any]) -> None:
    params = event.get("params", {})
    match event.get("method"):
        case "Log.entryAdded" if params["entry"]["level"] == "error":
            tab.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        case "Runtime.exceptionThrown":
            tab.faults.append(json.dumps(params["exceptionDetails"])[:500])


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser that is gone afterwards."""
    made = Browser(profile)
    try:
        yield made
    finally:
        made.close()
