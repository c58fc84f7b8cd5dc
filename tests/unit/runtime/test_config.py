"""A run file is checked once, and every mistake gets one line with the way out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from halocast.errors import MisuseError
from halocast.runtime.config import override, read_run_file, resolve
from halocast.runtime.trainer import learning_rate


def test_defaults_and_overrides() -> None:
    document = override({"graph": "debian", "model": {"hidden": 32}}, ["model.layers=2", "training.schedule=cosine", "seed=7"])
    config = resolve(document, "test")
    assert (config.model.hidden, config.model.layers, config.training.schedule, config.seed) == (32, 2, "cosine", 7)
    assert config.method.exact.savings().keep_halo_features


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"graph": "g", "rank": 2}, "unknown key 'rank'; did you mean 'ranks'?"),
        ({"graph": "g", "model": {"hiden": 2}}, "unknown key 'model.hiden'; did you mean 'hidden'?"),
        ({"graph": "g", "method": {"exact": {"transform": 1}}}, "did you mean 'transform_first'?"),
        ({"graph": "g", "training": {"optimizer": "adm"}}, "did you mean 'adam'?"),
        ({"graph": "g", "ranks": 0}, "ranks = 0: input should be greater than or equal to 1"),
        ({"graph": "g", "model": {"dropout": 1.0}}, "model.dropout = 1.0: input should be less than 1"),
        ({"graph": "g", "training": {"epochs": "many"}}, "training.epochs = 'many'"),
        ({"ranks": 2}, "key 'graph' is missing"),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(document: dict[str, object], message: str) -> None:
    with pytest.raises(MisuseError, match=re.escape(message)) as caught:
        resolve(document, "run.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("run.toml: ")


def test_assignments_must_have_a_value_and_a_section() -> None:
    with pytest.raises(MisuseError, match="expected KEY=VALUE"):
        override({}, ["model.hidden"])
    with pytest.raises(MisuseError, match="'seed' is a value, not a section"):
        override({"seed": 1}, ["seed.x=1"])


def test_run_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"cannot read run file .*: No such file"):
        read_run_file(tmp_path / "no.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("graph = nothing")
    with pytest.raises(MisuseError, match=r"is not valid TOML: .*line 1"):
        read_run_file(broken)


def test_learning_rates() -> None:
    def rates(**training: object) -> list[float]:
        config = resolve({"graph": "g", "training": {"learning_rate": 1.0, "epochs": 8, **training}}, "test").training
        return [round(learning_rate(config, epoch), 6) for epoch in range(8)]

    assert rates() == [1.0] * 8
    assert rates(schedule="step", step_epochs=3) == [1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01]
    assert rates(warmup_epochs=2)[:3] == [0.1, 0.55, 1.0]
    cosine = rates(schedule="cosine")
    assert cosine[0] == 1.0
    assert cosine[4] == 0.5
    assert cosine == sorted(cosine, reverse=True)
