"""What rounding at random promises: no bias, the variance of the closed form, and draws that do not know of each other.

Every path sends the same bytes (test_codec.py), so one is enough here. Seeds are fixed and bounds are some five standard errors
of what is estimated, worked out from the closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.unit.kernels.codec_reference import value
from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.exchange import codec
from halocast.runtime.exchange.codec import Layout, Rounding
from halocast.traces.wire import CODED_WIDTHS

EPOCHS = 16
COPIES = 1024
"""Nodes that send the same row in an epoch: draws of its rounding as good as those of other epochs."""
DRAWS = EPOCHS * COPIES
RESOLUTION = 2.0**-17
"""Of a step: the most that 16 random bits may shift a mean."""


def stream_of(epoch: int, *, seed: int = 11, layer: int = 0, direction: int = 0) -> kernels.Stream:
    return kernels.Stream(seed=seed, epoch=epoch, layer=layer, direction=direction, purpose=kernels.PURPOSE_ROUNDING)


def send(
    rows: Tensor,
    width: int,
    stream: kernels.Stream,
    *,
    one_sided: bool = False,
    rounding: Rounding = Rounding.STOCHASTIC,
    first_node: int = 0,
) -> tuple[Tensor, Tensor, Layout]:
    """(rows that come back, wire, layout)."""
    widths = torch.full((len(rows),), width, dtype=torch.uint8)
    layout = Layout.of(widths, [(0, len(rows))], rows.shape[1], one_sided=one_sided, rounding=rounding)
    nodes = torch.arange(first_node, first_node + len(rows))
    wire, out = torch.empty(layout.bytes, dtype=torch.uint8), torch.empty_like(rows)
    codec.pack(rows, wire, layout, stream, nodes)
    codec.unpack(wire, layout, 0, stream, nodes, out)
    return out, wire, layout


def draws_of(row: Tensor, width: int, *, one_sided: bool = False, rounding: Rounding = Rounding.STOCHASTIC) -> np.ndarray:
    """``[DRAWS, dim]`` float64: the row as it came back in some epochs from some nodes."""
    rows = row.expand(COPIES, -1).contiguous()
    return np.concatenate(
        [send(rows, width, stream_of(epoch), one_sided=one_sided, rounding=rounding)[0].double() for epoch in range(EPOCHS)]
    )


def grid_of(row: Tensor, width: int, *, one_sided: bool = False) -> tuple[float, float]:
    """(offset, scale) that are sent with a row, from its record's bytes."""
    _, wire, layout = send(row[None], width, stream_of(0), one_sided=one_sided)
    record = wire[int(layout.offsets[0]) :].tolist()
    numbers = [record[0] | record[1] << 8, record[2] | record[3] << 8]
    return (
        (0.0, float(value(numbers[0] << 15))) if one_sided else (float(value(numbers[0] << 16)), float(value(numbers[1] << 15)))
    )


def variance_of(row: Tensor, width: int, *, one_sided: bool = False) -> np.ndarray:
    """s² f (1 − f) of each element, f being what the element has above the level below it, in steps."""
    offset, scale = grid_of(row, width, one_sided=one_sided)
    fraction = np.modf((row.double().numpy() - offset) / scale)[0]
    return np.asarray(scale**2 * fraction * (1 - fraction))


def gaussian_row(dim: int, seed: int = 0) -> Tensor:
    return torch.randn(dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("width", CODED_WIDTHS)
def test_means_are_the_values_and_variances_those_of_the_closed_form(width: int, one_sided: bool) -> None:
    row = gaussian_row(200, seed=width)
    row = row.relu() if one_sided else row
    drawn, exact = draws_of(row, width, one_sided=one_sided), row.double().numpy()
    variance, (_, scale) = variance_of(row, width, one_sided=one_sided), grid_of(row, width, one_sided=one_sided)

    # Elements on a level to within the 16 bits never or hardly ever move.
    chance = variance > (scale * 1e-3) ** 2
    assert chance.sum() > 80
    bias = np.abs(drawn.mean(0) - exact)
    assert (bias <= scale * RESOLUTION + 5 * np.sqrt(variance / DRAWS) + 1e-6 * scale).all()
    scores = (drawn.mean(0) - exact)[chance] / np.sqrt(variance[chance] / DRAWS)
    assert abs(np.mean(scores**2) - 1) < 5 * math.sqrt(2 / chance.sum())
    assert abs(scores.mean()) < 5 / math.sqrt(chance.sum())

    # An element takes one of two values: its fourth central moment is v s² (1 − 3 f (1 − f)), at most v s².
    measured = ((drawn - exact) ** 2).mean(0)
    assert (np.abs(measured - variance) <= 6 * np.sqrt(variance * scale**2 / DRAWS) + 2 * RESOLUTION * scale**2).all()
    assert measured.sum() == pytest.approx(variance.sum(), rel=0.02)


@pytest.mark.parametrize("rounding", [Rounding.STOCHASTIC, Rounding.ROTATED])
def test_the_error_of_the_mean_falls_with_the_root_of_the_number_of_draws(rounding: Rounding) -> None:
    row = gaussian_row(256, seed=3)
    errors = draws_of(row, 2, rounding=rounding) - row.double().numpy()
    rms = [np.sqrt(np.mean(errors[:count].mean(0) ** 2)) for count in (16, 256, 4096)]
    # 256 elements: each of the three is known to 1/√512 = 4 %.
    assert rms[0] / rms[1] == pytest.approx(4, rel=0.2)
    assert rms[1] / rms[2] == pytest.approx(4, rel=0.2)


def test_to_the_nearest_is_biased_and_errs_less() -> None:
    row = gaussian_row(200)
    exact, (_, scale) = row.double().numpy(), grid_of(row, 2)
    drawn = draws_of(row, 2, rounding=Rounding.NEAREST)
    assert (drawn == drawn[0]).all()
    errors = drawn[0] - exact
    assert np.abs(errors).max() <= scale * (0.5 + 1e-4)
    assert (errors**2).sum() < 0.6 * variance_of(row, 2).sum()


def test_errors_add_up_as_if_drawn_independently() -> None:
    """Over the elements of a row, and over nodes, epochs, layers, directions and seeds, whose sums a layer aggregates."""
    row = gaussian_row(200, seed=5)
    exact, total = row.double().numpy(), variance_of(row, 3).sum()
    error = draws_of(row, 3) - exact
    by_draw = error.sum(1)
    assert by_draw.var() == pytest.approx(total, rel=5 * math.sqrt(2 / DRAWS))

    rows = row.expand(DRAWS, -1).contiguous()
    streams = {
        "node": (stream_of(0), DRAWS),
        "epoch": (stream_of(1), 0),
        "layer": (stream_of(0, layer=1), 0),
        "direction": (stream_of(0, direction=1), 0),
        "seed": (stream_of(0, seed=12), 0),
        "high word of the seed": (stream_of(0, seed=11 + (1 << 32)), 0),
        "high byte of the node": (stream_of(0), 1 << 32),
    }
    first = send(rows, 3, stream_of(0))[0].double().numpy() - exact
    for what, (stream, node) in streams.items():
        other = send(rows, 3, stream, first_node=node)[0].double().numpy() - exact
        correlation = (first * other).sum(1).mean() / total
        # The products' variance is Σ v², at most the largest v times Σ v.
        assert abs(correlation) < 5 * math.sqrt(variance_of(row, 3).max() / total / DRAWS), what
        assert not np.array_equal(first, other), what

    neighbours = (error[:, :-1] * error[:, 1:]).mean(0)
    variance = variance_of(row, 3)
    assert (np.abs(neighbours) <= 6 * np.sqrt(variance[:-1] * variance[1:] / DRAWS) + 1e-6).all()


def test_small_fractions_come_through() -> None:
    """A value k/65536 of a step above its level is rounded up in k of 65,536 draws: no fewer bits would do."""
    row = torch.tensor([0.0, 1.0, *(k / 65536 for k in (1, 16, 255, 4096, 32768, 65535))])
    rows = row.expand(1 << 16, -1).contiguous()
    counts = sum(send(rows, 1, stream_of(epoch), one_sided=True)[0].double().sum(0) for epoch in range(4))
    assert isinstance(counts, Tensor)
    expected = row.double() * 4 * 65536
    spread = (expected * (1 - row.double())).sqrt()
    assert ((counts - expected).abs() <= 5 * spread).all(), counts.tolist()


# Least mean squared error of a normal variable rounded to 2 and to 4 levels: J. Max, "Quantizing for minimum distortion", IRE
# Transactions on Information Theory 6 (1960), table I. A scale that makes the mean exact turns D into 1 / (1 − D) − 1: EDEN,
# section 3.
DISTORTION = {1: 1 - 2 / math.pi, 2: 0.1175}


def normalised_error(rows: Tensor, width: int, rounding: Rounding, *, one_sided: bool = False) -> float:
    """Mean of ‖decoded − row‖² / ‖row‖²."""
    back, _, _ = send(rows, width, stream_of(0), rounding=rounding, one_sided=one_sided)
    return float(((back - rows).double().square().sum(1) / rows.double().square().sum(1)).mean())


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("dim", [256, 200, 1000])
def test_the_rotated_codec_errs_as_theory_says_whatever_the_rows(width: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(width)
    normal = torch.randn(2000, dim, generator=generator)
    signs, magnitudes = normal.sign(), -torch.rand(2000, dim, generator=generator).clamp_min(1e-9).log()
    expected = 1 / (1 - DISTORTION[width]) - 1
    for what, rows in (("normal", normal), ("after ReLU", normal.relu()), ("Laplace", signs * magnitudes)):
        found = normalised_error(rows, width, Rounding.ROTATED)
        assert found == pytest.approx(expected, rel=0.04), what


def test_what_the_rotation_saves_at_2_bits() -> None:
    """Of 256 values, against rounding between the least and the largest, whose error follows from the rows."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, 256, generator=generator)
    laplace = normal.sign() * -torch.rand(2000, 256, generator=generator).clamp_min(1e-9).log()
    for rows, one_sided, figure in ((normal, False, 0.59), (normal.relu(), True, 0.15), (laplace, False, 1.15)):
        exact = rows.double().numpy()
        low, high = exact.min(1, keepdims=True), exact.max(1, keepdims=True)
        scale = (high - low) / 3
        fraction = np.modf((exact - low) / scale)[0]
        expected = float(((scale**2 * fraction * (1 - fraction)).sum(1) / (exact**2).sum(1)).mean())
        assert expected == pytest.approx(figure, rel=0.03)
        # The transmitted scale and offset, of fewer bits, cover the row and a little more.
        assert normalised_error(rows, 2, Rounding.STOCHASTIC, one_sided=one_sided) == pytest.approx(expected, rel=0.03)
        assert normalised_error(rows, 2, Rounding.ROTATED, one_sided=one_sided) == pytest.approx(0.133, rel=0.03)


ROWS: dict[str, Callable[[int], Tensor]] = {
    "normal": gaussian_row,
    "after ReLU": lambda dim: gaussian_row(dim).relu(),
    "ramp": lambda dim: torch.linspace(-1, 2, dim),
    "constant": torch.ones,
    "spikes": lambda dim: torch.where(torch.arange(dim) % 17 == 3, 5.0, 0.01),
    "two values": lambda dim: (torch.arange(dim) == 3) + 0.7 * (torch.arange(dim) == 10),
}


@pytest.mark.parametrize("what", ROWS)
@pytest.mark.parametrize("dim", [128, 100])
@pytest.mark.parametrize("width", [1, 2])
def test_the_rotated_codec_is_unbiased_over_rotations(width: int, dim: int, what: str) -> None:
    """To within 6 % of the row's norm, which is what Hadamard transforms with random signs leave of EDEN's uniform rotations.

    The mean of the draws alone is off by 0.6 % (1 bit) and 0.3 % (2 bits). Rows with few values other than 0, common after
    ReLU, are where too few transforms show: a sign of ±a ± b is that of the larger of the two.
    """
    row = ROWS[what](dim)
    errors = draws_of(row, width, rounding=Rounding.ROTATED) - row.double().numpy()
    bias = float(np.linalg.norm(errors.mean(0))) / float(row.norm())
    assert bias < 0.06
