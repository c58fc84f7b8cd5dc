"""Pages driven in a headless Chromium, by a script that is added to a copy of the page and leaves what it found in its text."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = re.compile(r'<pre id="found">(.*?)</pre>', re.DOTALL)
HELPERS = """
const all = (selector) => [...document.querySelectorAll(selector)];
const point = (element, kind, x, y, more = {}) => element.dispatchEvent(
  new PointerEvent(kind, { bubbles: true, cancelable: true, clientX: x, clientY: y, pointerType: "mouse", ...more }));
const middle = (element) => {
  const box = element.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
};
"""


def chromium():
    """The browser's path; skips where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium on this machine (Debian: apt install chromium)")
    return found


def drive(document, script, folder, *, size="1280,900", dark=False, libraries=(), milliseconds=4000):
    """Open the page, run `script` (the body of an async function) in it and return what it returns."""
    page = Path(folder) / "driven.html"
    added = "".join(f"<script>{library}</script>" for library in libraries)
    added += (
        f"<script>{HELPERS}(async () => {{ {script} }})().catch((error) => ({{ failed: String(error.stack || error) }}))"
        ".then((found) => { const text = document.createElement('pre'); text.id = 'found';"
        " text.textContent = JSON.stringify(found); document.body.append(text); });</script>"
    )
    page.write_text(document.replace("</body>", f"{added}</body>"), encoding="utf-8")
    command = [
        *(chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *(f"--user-data-dir={folder}/profile", f"--window-size={size}"),
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        *(f"--virtual-time-budget={milliseconds}", "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, timeout=90, env={**os.environ, "HOME": str(folder)}, check=False)
    text = done.stdout.decode()
    found = FOUND.search(text)
    assert found, f"the page's script left nothing: {text[-500:]} {done.stderr.decode()[-500:]}"
    answer = json.loads(html.unescape(found[1]))
    assert not (isinstance(answer, dict) and "failed" in answer), answer
    return answer
