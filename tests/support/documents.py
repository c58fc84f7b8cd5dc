"""Commands in documents: what stands in a fenced ``sh`` block is run, unless a comment before it says why not."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]*?) -->\s*\n)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Snippet:
    """One fenced block."""

    document: Path
    line: int
    language: str
    text: str
    not_run: str
    """Why; empty where it is run."""

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


def snippets(document: Path) -> list[Snippet]:
    """All fenced blocks, in order."""
    text = document.read_text()
    return [
        Snippet(document, text.count("\n", 0, found.start("text")), found["language"], found["text"], found["why"] or "")
        for found in FENCE.finditer(text)
    ]
