"""The one place that prints: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

PIPE_WIDTH = 180
SECONDS_BETWEEN_LINES = 10.0
UNITS = ("B", "kB", "MB", "GB", "TB")


class Console:
    """Prints for people, or with ``--json`` one document for scripts."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._err = RichConsole(stderr=True, highlight=False)
        # a pipe has no width of its own: do not fold tables for it
        self._out = RichConsole(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def error(self, message: str) -> None:
        """One line, whatever its length, so that it can be found and cut."""
        print(f"halocast: {' '.join(message.split())}", file=sys.stderr)

    def note(self, text: str) -> None:
        """Progress, on standard error."""
        self._err.print(text, markup=False, soft_wrap=True)

    def result(self, text: str) -> None:
        """A line of the answer; nothing with ``--json``."""
        if not self.as_json:
            self._out.print(text, markup=False, soft_wrap=True)

    def document(self, document: object) -> None:
        """The whole answer as JSON; nothing without ``--json``."""
        if self.as_json:
            print(json.dumps(document, indent=2))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
        """A table on standard output; the first `text_columns` columns are text, the others numbers."""
        if self.as_json:
            return
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for number, column in enumerate(columns):
            table.add_column(column, justify="left" if number < text_columns else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._out.print(table, markup=False)

    def closing(self, files: dict[str, str], next_command: str) -> None:
        """What every command ends with: the files it wrote and what to do next."""
        for name, path in files.items():
            self.result(f"  {name:<12} {path}")
        self.result(f"next: {next_command}")

    def training(self, epochs: int) -> TrainingProgress:
        """A progress bar over the epochs of a run."""
        return TrainingProgress(self._err, epochs)

    def sweeping(self, resumption: str) -> SweepProgress:
        """A progress bar over the scenarios of a sweep; `resumption`: the command that goes on with it."""
        return SweepProgress(self._err, resumption)


class SweepProgress:
    """Scenarios done and time left; a line now and then where standard error is no terminal."""

    def __init__(self, console: RichConsole, resumption: str) -> None:
        self._console, self._resumption = console, resumption
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.fields[scenarios]} scenarios", table_column=Column(no_wrap=True)),
            TextColumn("eta", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._total = self._done = 0
        self._weight = self._spent = 0.0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()
        if kind is KeyboardInterrupt and self._task is not None:
            raise KeyboardInterrupt(f"interrupted; go on with {self._resumption}") from error

    def note(self, text: str) -> None:
        """What is being done."""
        self._progress.console.print(f"{text} ...", markup=False, soft_wrap=True)

    def start(self, scenarios: int, done: int, weight: float) -> None:
        """`scenarios` in all, `done` before; `weight` of what is left, in about seconds."""
        self._total, self._done, self._weight = scenarios, done, weight
        self._began = self._said = time.monotonic()
        self._task = self._progress.add_task("sweep", total=weight, scenarios=self._counted())

    def advance(self, scenarios: int, weight: float) -> None:
        self._done, self._spent = self._done + scenarios, self._spent + weight
        if self._task is not None:
            self._progress.update(self._task, advance=weight, scenarios=self._counted())
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said > SECONDS_BETWEEN_LINES:
            self._said = now
            left = (now - self._began) * (self._weight / self._spent - 1.0)
            self.note(f"{self._counted()} scenarios, {left:.0f} s left")

    def _counted(self) -> str:
        return f"{self._done:,}/{self._total:,}"


class TrainingProgress:
    """Epoch, loss, epoch time, metric and time left; one line an evaluation where standard error is no terminal."""

    def __init__(self, console: RichConsole, epochs: int) -> None:
        self._console, self._epochs = console, epochs
        self._progress = Progress(
            BarColumn(bar_width=12),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            TextColumn("eta", table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True, min_width=7)),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task: TaskID | None = None
        self._scores = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event of the run: a step of the set-up, a resumption, an epoch."""
        kind = event["event"]
        if kind == "step":
            self._say(f"{event['text']} ...")
        elif kind == "resumed":
            self._say(f"resumed after epoch {event['epoch']} from {event['checkpoint']}")
        elif kind == "assignment":
            shares = ", ".join(f"{count:,} at {bits} bits" for bits, count in event["histogram"].items())
            self._say(f"widths from epoch {event['epoch']} on: rank 0 sends {shares} ({1000 * event['seconds']:.0f} ms)")
        elif kind == "epoch":
            self._epoch(event)

    def _say(self, text: str) -> None:
        self._progress.console.print(text, markup=False, soft_wrap=True)

    def _epoch(self, event: dict[str, Any]) -> None:
        if "val" in event:
            splits = ("train", "val", "test") if self._console.width >= 110 or not self._console.is_terminal else ("val",)
            self._scores = " ".join(f"{split} {event[split]:.4f}" for split in splits)
        status = f"loss {event['loss']:.4f}  {1000 * event['epoch_seconds']:.1f} ms  {self._scores}"
        if not self._console.is_terminal:
            if "val" in event:
                self._say(f"epoch {event['epoch'] + 1}/{self._epochs}  {status}")
            return
        if self._task is None:
            self._task = self._progress.add_task("epoch", total=self._epochs, completed=event["epoch"], status="")
        self._progress.update(self._task, completed=event["epoch"] + 1, status=status)


def human_bytes(size: float) -> str:
    """1,234,567 as ``1.2 MB``: decimal units, two or three significant digits."""
    unit = 0
    while size >= 1000 and unit < len(UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.0f} {UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:.1f} {UNITS[unit]}"
