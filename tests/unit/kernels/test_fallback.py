"""Where the native module was built for another machine, torch operations stand in, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.graphs import random_case
from tests.support.sessions import largest_relative_error, run_config, train_one_epoch

from halocast.cli.doctor import diagnose
from halocast.runtime import kernels

REASON = "the native kernels cannot be loaded (wrong ELF class); build them with `make build`"


@pytest.mark.parametrize("method", [{"name": "full"}, {"name": "adaqp", "bits": 4}])
def test_training_goes_on_without_the_native_kernels(
    method: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, config = random_case(3), run_config(3, model={"layers": 3, "hidden": 9, "norm": "layer"}, method=method)
    native, _ = train_one_epoch(case, config, tmp_path / "native")
    monkeypatch.setattr(kernels, "why_not_native", lambda: REASON)
    other, _ = train_one_epoch(case, config, tmp_path / "other")
    assert other[0].loss == pytest.approx(native[0].loss, rel=1e-5)
    # messages hold the same bits; what is summed around them may differ in the last one
    assert largest_relative_error(other[0].gradients, {name: g.double() for name, g in native[0].gradients.items()}) < 1e-3


def test_doctor_and_every_run_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from halocast.runtime.run import warn_of_slow_kernels

    monkeypatch.setattr(kernels, "why_not_native", lambda: REASON)
    finding = next(each for each in diagnose() if each.what == "kernels")
    assert not finding.ok
    assert "wrong ELF class" in finding.state
    events: list[dict[str, object]] = []
    warn_of_slow_kernels(events.append)
    assert "many times slower" in str(events[0]["text"])


def test_the_native_kernels_are_what_the_tests_run_on() -> None:
    assert kernels.why_not_native() is None
    assert kernels.is_native(torch.zeros(1))
