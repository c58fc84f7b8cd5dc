"""Philox4x32-10 against the published vectors and the NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.unit.kernels.philox_reference import reference, reference_words

from halocast.errors import MisuseError
from halocast.runtime import kernels

# Random123 1.14, tests/kat_vectors, philox4x32 with 10 rounds: counter, key, answer.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

NODES = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x1_0000_0000, 0xFF_FFFF_FFFF, 0x12_3456_789A]
DIMS = [1, 3, 4, 5, 17, 128, 255, 256, 257, 602]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_reference_gives_the_published_answers(counter: str, key: str, answer: str) -> None:
    found = reference([np.array(word) for word in words(counter)], words(key))
    assert [int(word) for word in found] == words(answer)


def test_kernel_gives_the_published_answer(path: str) -> None:
    found = kernels.philox(kernels.Stream(seed=0, epoch=0, layer=0), torch.zeros(1, dtype=torch.int64), 4)
    assert found[0].tolist() == words(KNOWN_ANSWERS[0][2])


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(
    "stream",
    [
        kernels.Stream(seed=1, epoch=0, layer=0),
        kernels.Stream(seed=0x299F31D0A4093822, epoch=7, layer=3, direction=1, purpose=kernels.PURPOSE_ROUNDING),
        kernels.Stream(seed=(1 << 64) - 1, epoch=(1 << 32) - 1, layer=(1 << 16) - 1, direction=15, purpose=15),
    ],
    ids=["plain", "rounding", "largest"],
)
def test_every_word_equals_the_reference(path: str, stream: kernels.Stream, dim: int) -> None:
    found = kernels.philox(stream, torch.tensor(NODES), dim)
    np.testing.assert_array_equal(found.numpy(), reference_words(stream, NODES, dim))


def test_a_row_does_not_depend_on_its_neighbours_or_threads() -> None:
    stream = kernels.Stream(seed=5, epoch=1, layer=2)
    nodes = torch.randperm(20_000, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(3)
    whole = kernels.philox(stream, nodes, 20)
    torch.set_num_threads(1)
    assert torch.equal(whole[777:800], kernels.philox(stream, nodes[777:800], 20))


@pytest.mark.parametrize(
    "change",
    [{"seed": -1}, {"seed": 1 << 64}, {"epoch": 1 << 32}, {"layer": 1 << 16}, {"direction": 16}, {"purpose": -1}],
)
def test_a_stream_outside_its_counter_bits_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(MisuseError, match=f"{next(iter(change))} .* is out of range"):
        kernels.Stream(**{"seed": 0, "epoch": 0, "layer": 0, **change})
