"""A headless Chromium that tests drive through its debugging protocol: no driver and no network needed."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 30.0


def find_browser() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. `path`: of the executable; `profile`: an empty folder of its own."""

    def __init__(self, path: str, profile: Path, width: int = 1280, height: int = 1600, *, dark: bool = False) -> None:
        arguments = [
            path, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
            "--remote-allow-origins=*", f"--user-data-dir={profile}", f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={int(not dark)}", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._number = 0
        self.said: list[str] = []
        """What the page's console was told: errors, and what the content policy refused."""
        port = self._port(profile / "DevToolsActivePort")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE) as answer:
            page = next(each for each in json.load(answer) if each["type"] == "page")
        self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], timeout=PATIENCE, suppress_origin=True)
        for domain in ("Page", "Runtime", "Log"):
            self.command(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(PATIENCE)

    @staticmethod
    def _port(path: Path) -> int:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            if path.exists() and (lines := path.read_text().splitlines()):
                return int(lines[0])
            time.sleep(0.05)
        raise TimeoutError("the browser did not start")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its result; what else the browser says is kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            if message.get("method") == "Log.entryAdded":
                self.said.append(message["params"]["entry"]["text"])
            if message.get("method") == "Runtime.exceptionThrown":
                self.said.append(json.dumps(message["params"]["exceptionDetails"]))

    def open(self, url: str) -> None:
        """Load a page to its end."""
        self.command("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        found = self.command("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, condition: str, patience: float = PATIENCE) -> None:
        """Wait for an expression to become true."""
        limit = time.monotonic() + patience
        while not self.evaluate(condition):
            assert time.monotonic() < limit, f"never true: {condition}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element."""
        box = self.evaluate(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            " const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.command("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A real key, such as ArrowRight."""
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "Home": 36, "End": 35}
        for kind in ("keyDown", "keyUp"):
            self.command("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.command("Page.captureScreenshot", format="png")["data"]))
