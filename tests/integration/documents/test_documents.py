"""The documents' commands, run as a newcomer would run them, and the pages of commands beside the commands themselves."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.support.documents import Snippet, snippets

from halocast.cli import COMMANDS

ROOT = Path(__file__).parents[3]
PAGES = ROOT / "docs" / "commands"
ORDER = (
    *("doctor", "datasets", "partition", "train", "calibrate", "forecast", "plan", "validate"),
    *("export", "whatif", "report", "serve", "tune", "demo"),
)
"""Later pages use what earlier ones left."""
CHAINS = {
    "README": [ROOT / "README.md"],
    "tutorial": [ROOT / "docs" / "tutorial.md"],
    "commands": [PAGES / f"{name}.md" for name in ORDER],
}
SECONDS = 240
"""Of one block."""

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """This interpreter's halocast first on the path, and a cache of its own."""
    cache = tmp_path_factory.mktemp("cache")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HALOCAST_CACHE": str(cache), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("chain", CHAINS)
def test_commands_do_what_they_say(chain: str, tmp_path: Path, environment: dict[str, str]) -> None:
    for name in ("traces", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    ran = [run(snippet, tmp_path, environment) for document in CHAINS[chain] for snippet in snippets(document)]
    assert any(ran)


def run(snippet: Snippet, folder: Path, environment: dict[str, str]) -> bool:
    """Run a block of commands; write down a block of another file that its first line names: ``# file: grid.toml``."""
    named = re.match(r"# file: (\S+)\n", snippet.text)
    if named:
        target = folder / named[1]
        assert folder in target.resolve().parents
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(snippet.text)
    if snippet.language != "sh" or snippet.not_run:
        return False
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", snippet.text],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{snippet}: exit code {done.returncode}\n{snippet.text}\n{done.stdout}\n{done.stderr}"
    return True


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document}: {target}"


def test_every_command_has_a_page_that_is_run() -> None:
    assert sorted(ORDER) == sorted(COMMANDS)
    assert {path.stem for path in PAGES.glob("*.md")} == {*COMMANDS, "README"}


@pytest.mark.parametrize("command", COMMANDS)
def test_pages_have_the_flags_that_commands_have(command: str) -> None:
    pages = load(ROOT / "scripts" / "command_pages.py")
    page = (PAGES / f"{command}.md").read_text()
    assert pages.BEGIN in page
    assert pages.END in page
    assert pages.with_flags(page, command) == page, "run `python scripts/command_pages.py`"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
