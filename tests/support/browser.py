"""Debian's Chromium, driven headless by the WebDriver protocol, and a server for the browser.

The protocol (https://www.w3.org/TR/webdriver2/) is JSON over HTTP to Debian's chromedriver. The package selenium is not
used, because it brings trio, whose entry point for hypothesis warns, and warnings are errors here.
"""

import base64
import contextlib
import http.client
import json
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from spanbert_jax.service.app import application
from spanbert_jax.service.server import bind
from spanbert_jax.service.service import Service

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"  # of Debian's packages chromium and chromium-driver
_FLAGS = (
    "--headless",
    "--no-sandbox",  # which root cannot have
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of an element's reference
# Keys that have no character.
TAB, ENTER, SHIFT, CONTROL, HOME, LEFT, RIGHT = "\ue004\ue007\ue008\ue009\ue011\ue012\ue014"


def is_installed() -> bool:
    return os.access(CHROMIUM, os.X_OK) and os.access(DRIVER, os.X_OK)


class Browser:
    """A session of a driver on this machine. Elements are the references that the protocol has for them."""

    def __init__(self, port: int, profile: Path):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        options = {"binary": CHROMIUM, "args": [*_FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._path = ""
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._path = f"/session/{made['sessionId']}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, self._path + path, content, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        value = json.load(response)["value"]
        if response.status != 200:
            raise RuntimeError(f"{path}: {value['error']}: {value['message']}")
        return value

    def close(self) -> None:
        self._ask("DELETE", "")
        self._connection.close()

    def go(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def js(self, script: str, *arguments: Any) -> Any:
        """What the script returns; its `arguments` may be elements."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": arguments})

    def all(self, selector: str) -> list[dict[str, str]]:
        return list(self._ask("POST", "/elements", {"using": "css selector", "value": selector}))

    def one(self, selector: str) -> dict[str, str]:
        """The first element; raises RuntimeError where there is none."""
        return dict(self._ask("POST", "/element", {"using": "css selector", "value": selector}))

    def click(self, element: dict[str, str]) -> None:
        """Clicks as with a mouse: raises RuntimeError where another element lies above."""
        self._ask("POST", f"/element/{element[_ELEMENT]}/click", {})

    def type(self, element: dict[str, str], keys: str) -> None:
        self._ask("POST", f"/element/{element[_ELEMENT]}/value", {"text": keys})

    def is_shown(self, selector: str) -> bool:
        return bool(self._ask("GET", f"/element/{self.one(selector)[_ELEMENT]}/displayed"))

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol, such as those that emulate screens."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def log(self) -> list[str]:
        """The messages of the console since the last call."""
        return [str(entry["message"]) for entry in self._ask("POST", "/se/log", {"type": "browser"})]

    def picture(self) -> bytes:
        """The window as PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def wait(self, condition: Callable[[], object], seconds: float = 120) -> None:
        """Waits until the condition holds; raises TimeoutError where it does not."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError(f"not after {seconds} s")
            time.sleep(0.02)


@contextlib.contextmanager
def opened_browser(folder: Path) -> Iterator[Browser]:
    """A browser, whose new profile and log lie in the folder."""
    log = folder / "driver.log"
    with open(log, "w") as written:
        driver = subprocess.Popen([DRIVER, "--port=0"], stdout=written, stderr=subprocess.STDOUT)
    try:
        while not (started := re.search(r"successfully on port (\d+)", log.read_text())):
            assert driver.poll() is None, log.read_text()
            time.sleep(0.02)
        browser = Browser(int(started[1]), folder / "profile")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        driver.terminate()
        driver.wait()


@contextlib.contextmanager
def served(service: Service) -> Iterator[str]:
    """The address of a server of the service, which the caller warms up and closes."""
    server = uvicorn.Server(uvicorn.Config(application(service), log_config=None, lifespan="off", ws="none"))
    with bind("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server of a test")
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
