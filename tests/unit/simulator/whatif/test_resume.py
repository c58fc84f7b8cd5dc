"""Sweeps that are interrupted and gone on with: every row once, of the same inputs only."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.unit.simulator.whatif.grids import GRID, RUN_FILE, command

from halocast.cli import run
from halocast.cli.console import SweepProgress
from halocast.errors import MisuseError
from halocast.simulator.costs import Costs
from halocast.simulator.whatif import read_whatif
from halocast.simulator.whatif.folder import Writer


class Interruption:
    """Progress that is interrupted after some tasks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        advance = SweepProgress.advance

        def interrupted(progress: SweepProgress, scenarios: int, weight: float) -> None:
            advance(progress, scenarios, weight)
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        monkeypatch.setattr(SweepProgress, "advance", interrupted)
        monkeypatch.setattr("halocast.simulator.whatif.sweep.TASK_SECONDS", 1e-6)  # a scenario a task


def test_interrupted_and_gone_on_with(
    grid: Path, movable_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        Interruption(monkeypatch, after=9)
        assert run(command(grid, movable_file, out)) == 130
    assert f"--out {out} --resume" in capsys.readouterr().err
    so_far = read_whatif(out)
    assert (so_far.manifest.finished, so_far.answers, len(so_far.table)) == (False, None, 9)
    stamps = [path.stat().st_mtime_ns for path in sorted((out / "parts").iterdir())]
    assert run(command(grid, movable_file, out)) == 2  # not without being asked to
    assert [path.stat().st_mtime_ns for path in sorted((out / "parts").iterdir())] == stamps
    assert run(command(grid, movable_file, out, "--resume")) == 0
    assert pq.read_table(out / "scenarios.parquet").equals(pq.read_table(folder / "scenarios.parquet"))
    assert (out / "answers.json").read_text() == (folder / "answers.json").read_text()


def test_interrupted_while_rows_are_written_they_are_there_once(
    grid: Path, movable_file: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("halocast.simulator.whatif.sweep.FLUSH_SECONDS", 0.0)
        monkeypatch.setattr("halocast.simulator.whatif.sweep.TASK_SECONDS", 1e-6)
        write = Writer.part

        def interrupted(writer: Writer, rows: Any) -> None:
            write(writer, rows)
            monkeypatch.setattr(Writer, "part", write)
            raise KeyboardInterrupt

        monkeypatch.setattr(Writer, "part", interrupted)
        assert run(command(grid, movable_file, out)) == 130
    (first,) = (out / "parts").iterdir()
    shutil.copy(first, out / "parts" / "00007.parquet")  # as older sweeps may have left it
    so_far = read_whatif(out).table
    assert len(so_far) > 0
    assert so_far["scenario"].is_unique
    assert run(command(grid, movable_file, out, "--resume")) == 0
    assert pq.read_table(out / "scenarios.parquet").equals(pq.read_table(folder / "scenarios.parquet"))


def test_a_damaged_part_is_named_with_the_way_out(
    grid: Path, movable_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as monkeypatch:
        Interruption(monkeypatch, after=3)
        assert run(command(grid, movable_file, out)) == 130
    (part,) = (out / "parts").iterdir()
    part.write_bytes(part.read_bytes()[:-20])
    capsys.readouterr()
    assert run(command(grid, movable_file, out, "--resume")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("halocast: ")]
    assert f"{part} cannot be read" in line
    assert "remove it, and go on with `halocast whatif --resume`" in line
    with pytest.raises(MisuseError, match="cannot be read"):
        read_whatif(out)
    part.unlink()
    assert run(command(grid, movable_file, out, "--resume")) == 0
    assert pq.read_table(out / "scenarios.parquet").equals(pq.read_table(folder / "scenarios.parquet"))


@pytest.mark.parametrize(
    ("of", "there", "then"),
    [
        ("run file", 'dtype = "float32"', 'dtype = "float64"'),
        ("run file", "overlap = true", "overlap = false"),
        ("run file", "threads = 0", "threads = 2"),
        ("run file", 'hosts = "shaped:100mbit"', 'hosts = "local"'),
        ("run file", 'balance = "nodes"\nseed = 0', 'balance = "nodes"\nseed = 1'),
        ("run file", 'balance = "nodes"', 'balance = "edges"'),
        ("axis", "[method]", "[method]\nprefetch = 2"),
        ("hardware", "value = 1e9", "value = 2e9"),
    ],
)
def test_files_that_have_changed_since_are_not_gone_on_with(
    of: str, there: str, then: str, movable_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, data, path = tmp_path / "own.toml", tmp_path / "run.toml", tmp_path / "grid.toml"
    figure = 'value = {}, source = "own", date = "2026"'.format
    own.write_text(f'[networks.mine]\ntitle = "own"\nrate = {{ {figure("1e9")} }}\nlatency_seconds = {{ {figure(0)} }}\n')
    data.write_text(RUN_FILE.read_text())
    path.write_text(f'data = "{data}"\nepochs = 1\nhardware = "{own}"\n[cluster]\nranks = 1\nnetwork = "mine"\n')
    assert run(command(path, movable_file, tmp_path / "out")) == 0
    assert run(command(path, movable_file, tmp_path / "out", "--resume")) == 0
    changed = own if of == "hardware" else data
    assert there in changed.read_text()
    changed.write_text(changed.read_text().replace(there, then))
    capsys.readouterr()
    assert run(command(path, movable_file, tmp_path / "out", "--resume")) == 2
    said = "another grid" if of == "axis" else "other hardware, or of a run file with other settings"
    assert f"holds a sweep of {said}" in capsys.readouterr().err


def test_going_on_with_a_finished_folder_repeats_its_answers(
    grid: Path, movable_file: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stamp = (folder / "scenarios.parquet").stat().st_mtime_ns
    assert run(command(grid, movable_file, folder, "--resume")) == 0
    assert "nothing to go on with" in capsys.readouterr().err
    assert (folder / "scenarios.parquet").stat().st_mtime_ns == stamp


def test_what_is_not_the_same_is_not_gone_on_with(
    grid: Path, movable: Costs, movable_file: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_grid, other_costs = tmp_path / "other.toml", tmp_path / "other.json"
    other_grid.write_text(GRID.replace("[2, 8]", "[2, 4]"))
    movable.model_copy(update={"noise": 0.5}).save(other_costs)
    for changed, message in (
        (command(other_grid, movable_file, folder, "--resume"), "holds a sweep of another grid"),
        (command(grid, other_costs, folder, "--resume"), "holds a sweep of other costs"),
        (command(grid, movable_file, folder, "--resume", "--sample", "9"), "holds a sweep of another sample"),
        (command(grid, movable_file, folder), "--resume, or overwrite it with --force"),
        (command(grid, movable_file, tmp_path, "--force"), "is no what-if folder: --force does not remove it"),
        (command(grid, movable_file, tmp_path / "none", "--resume"), "is no what-if folder"),
    ):
        assert run(changed) == 2
        assert message in capsys.readouterr().err
