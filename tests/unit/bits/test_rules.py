"""What users write becomes a rule or one clear line; drawn widths are a pure function; width files are checked."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.reference import philox_words

from halocast.errors import MisuseError
from halocast.runtime.bits.rules import (
    AdaptiveRule,
    FileRule,
    RandomRule,
    Rule,
    UniformRule,
    parse_rule,
    random_widths,
    read_width_file,
)
from halocast.traces.operations import Direction

FORWARD, BACKWARD = Direction.FORWARD, Direction.BACKWARD


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (8, UniformRule(8)),
        (32, UniformRule(32)),
        ("4", UniformRule(4)),
        ("uniform:3", UniformRule(3)),
        ("random", RandomRule((2, 4, 8))),
        ("adaptive", AdaptiveRule()),
        ("widths.npz", FileRule(Path("widths.npz"))),
        ("a folder/of:mine/widths.npz", FileRule(Path("a folder/of:mine/widths.npz"))),
    ],
)
def test_what_users_write(value: int | str, rule: Rule) -> None:
    assert parse_rule(value) == rule


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, "7 is not a width; did you mean 8?"),
        (0, "bits = 0: with every message dropped none is left to be scaled in their place"),
        ("uniform:0", "an .npz file with method.dropping = true"),
        (20, "did you mean 16?"),
        ("64", "did you mean 32?"),
        ("-4", "-4 is not a width"),
        ("uniform:9", "bits = 'uniform:9': 9 is not a width; did you mean 8?"),
        ("uniform", "as in uniform:8"),
        ("uniform:", "as in uniform:8"),
        ("uniform:four", "allowed: 1, 2, 3, 4, 5, 6, 8, 16, 32"),
        ("unifrom:4", "did you mean 'uniform:8'?"),
        ("adaptiv", "did you mean 'adaptive'?"),
        ("ramdom", "did you mean 'random'?"),
        ("widths.npy", "bits = 'widths.npy' is unknown"),
        ("", "allowed: a width"),
        (True, "bits = True is not allowed"),
        (4.0, "bits = 4.0 is not allowed"),
    ],
)
def test_what_users_mistype(value: int | str, expected: str) -> None:
    with pytest.raises(MisuseError) as caught:
        parse_rule(value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


NODES = np.random.default_rng(0).integers(0, 2**40, 60_000)


def draw(**changes: object) -> np.ndarray:
    arguments = {"seed": 1, "period": 2, "layer": 3, "direction": FORWARD, "nodes": NODES, "peer": 4, **changes}
    return random_widths(**arguments)  # type: ignore[arg-type]


def test_drawn_widths_are_equally_frequent() -> None:
    for choices in ((2, 4, 8), (1, 2, 3, 4, 5), (16, 32)):
        widths = draw(choices=choices)
        counts = np.array([(widths == width).sum() for width in choices])
        assert counts.sum() == NODES.size
        expected = NODES.size / len(choices)
        # chi-squared with up to 4 degrees of freedom: 25 is beyond 1 in 10,000
        assert ((counts - expected) ** 2 / expected).sum() < 25


def test_a_drawn_width_depends_on_its_own_message_alone() -> None:
    widths = draw()
    assert widths.dtype == np.uint8
    order = np.random.default_rng(1).permutation(NODES.size)
    np.testing.assert_array_equal(draw(nodes=NODES[order]), widths[order])
    np.testing.assert_array_equal(draw(nodes=NODES[100:200]), widths[100:200])
    np.random.seed(5)  # noqa: NPY002  the global generator is not used
    np.testing.assert_array_equal(draw(), widths)
    assert draw(nodes=NODES[:0]).tolist() == []


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"seed": 1 + 2**40}, {"period": 3}, {"layer": 4}, {"direction": BACKWARD}, {"peer": 5}]
)
def test_every_argument_gives_another_draw(change: dict[str, object]) -> None:
    agreement = (draw(**change) == draw()).mean()
    assert agreement == pytest.approx(1 / 3, abs=0.01)


def test_nodes_above_32_bits_are_told_apart() -> None:
    low = np.arange(30_000)
    assert (draw(nodes=low) == draw(nodes=low + 2**32)).mean() == pytest.approx(1 / 3, abs=0.02)


def test_the_word_is_philox_with_the_documented_counter() -> None:
    """Against the other transcription: receiver 0 is its element 0, and the period its epoch."""
    nodes = NODES[:1000]
    words = philox_words(7, 2, 3, nodes, 1, purpose=3)[:, 0]
    expected = np.array([2, 4, 8])[(words * np.uint64(3) >> np.uint64(32)).astype(int)]
    np.testing.assert_array_equal(draw(seed=7, nodes=nodes, peer=0), expected)


MESSAGES = {(1, FORWARD, 0): 3, (1, BACKWARD, 0): 2, (2, FORWARD, 1): 0}


def arrays() -> dict[str, np.ndarray]:
    return {
        "layer1_forward_rank0": np.array([2, 8, 32], dtype=np.uint8),
        "layer1_backward_rank0": np.array([1, 16], dtype=np.uint8),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_width_files_are_read(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "widths.npz", **arrays(), something_else=np.zeros(3))
    widths = read_width_file(tmp_path / "widths.npz", MESSAGES)
    assert {key: array.tolist() for key, array in widths.items()} == {
        (1, FORWARD, 0): [2, 8, 32],
        (1, BACKWARD, 0): [1, 16],
        (2, FORWARD, 1): [],
    }
    assert all(array.dtype == np.uint8 for array in widths.values())


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("layer1_backward_rank0", None, "array 'layer1_backward_rank0' is missing; found: layer1_forward_rank0"),
        ("layer1_backward_rank0", np.ones(3, np.uint8), "'layer1_backward_rank0' has 3 widths for 2 messages"),
        ("layer2_forward_rank1", np.ones(1, np.uint8), "'layer2_forward_rank1' has 1 widths for 0 messages"),
        ("layer1_forward_rank0", np.array([2, 7, 9], np.uint8), "gives message 1 7 bits; allowed: 1, 2, 3, 4, 5, 6, 8"),
        ("layer1_forward_rank0", np.array([2, 4, 8]), "is int64 [3]; needed is uint8 [3]"),
        ("layer1_forward_rank0", np.full((3, 1), 2, np.uint8), "is uint8 [3, 1]; needed is uint8 [3]"),
        ("layer1_forward_rank0", np.array([2, None, 8], dtype=object), "never unpickled"),
    ],
)
def test_width_files_that_do_not_fit(tmp_path: Path, name: str, array: np.ndarray | None, expected: str) -> None:
    content = {**arrays(), name: array}
    np.savez(tmp_path / "widths.npz", **{key: value for key, value in content.items() if value is not None})
    with pytest.raises(MisuseError) as caught:
        read_width_file(tmp_path / "widths.npz", MESSAGES)
    assert expected in str(caught.value)
    assert str(tmp_path / "widths.npz") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_width_0_in_a_file_needs_the_switch(tmp_path: Path) -> None:
    path = tmp_path / "widths.npz"
    np.savez(path, **{**arrays(), "layer1_forward_rank0": np.array([2, 0, 32], np.uint8)})
    assert read_width_file(path, MESSAGES, dropping=True)[1, FORWARD, 0].tolist() == [2, 0, 32]
    with pytest.raises(MisuseError, match=r"'layer1_forward_rank0' gives message 1 0 bits; set method.dropping = true"):
        read_width_file(path, MESSAGES)
    np.savez(path, **{**arrays(), "layer1_forward_rank0": np.array([2, 0, 7], np.uint8)})
    with pytest.raises(MisuseError, match="gives message 2 7 bits; allowed: 1, 2"):
        read_width_file(path, MESSAGES, dropping=True)
    assert parse_rule("widths.npz", dropping=True) == FileRule(Path("widths.npz"), dropping=True)


def test_width_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "widths.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    contents = {
        "no such file": None,
        "empty": b"",
        "not an .npz": pickle.dumps(arrays()),
        "truncated or damaged": whole[: len(whole) // 2],
    }
    for expected, content in contents.items():
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(MisuseError) as caught:
            read_width_file(path, MESSAGES)
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)


def outcome(path: Path) -> list[int] | str:
    """The widths of one array, or the error."""
    try:
        return read_width_file(path, MESSAGES)[1, FORWARD, 0].tolist()
    except MisuseError as error:
        return str(error)


def test_damage_anywhere_is_one_line_or_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "widths.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        found = outcome(path)
        assert found == [2, 8, 32] or (isinstance(found, str) and "\n" not in found)


def test_rules_need_no_torch() -> None:
    code = "import sys, halocast.runtime.bits.adaptive, halocast.runtime.bits.rules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
