"""The CUDA kernels of attention and extremes: every test of the CPU's on their emulation, and both devices compared on a GPU.

Tolerances are the CPU's own: a row's sums take another order, and e^x another path, so that results agree within rounding;
masks of dropout and extremes agree bit for bit.
"""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.unit.kernels.attention_emulation import (
    COMPILER,
    HOST_FLAGS,
    IN_PLACE_DIM,
    ORDERS,
    SOURCES,
    Emulation,
    library,
)
from tests.unit.kernels.attention_reference import Problem, edges_of, reference, run, worst_error
from tests.unit.kernels.test_attend import (
    DROPOUT,
    KINDS,
    TOLERANCE,
    test_an_edge_logit_of_minus_infinity_leaves_its_edge_out,
    test_dropout_mask_is_the_documented_one_for_any_split,
    test_equals_the_dense_softmax_in_any_number_of_blocks,
    test_exponential_is_within_two_units_in_the_last_place,
    test_features_and_half_logits_in_one_message,
    test_gradients_with_dropout,
    test_huge_logits_do_not_overflow,
    test_rows_and_blocks_without_edges,
    test_widths,
)
from tests.unit.kernels.test_attend_places import (
    Block,
    test_a_block_turns_into_its_gradient,
    test_features_turn_into_their_gradient,
    test_only_values_or_only_half_logits_in_place,
    test_pack_into_given_memory_from_parts_of_one_buffer,
    test_targets_may_have_ranges_of_more_edges,
)
from tests.unit.kernels.test_extreme import (
    test_equals_scatter_reduce_in_any_number_of_blocks,
    test_nan_wins_whichever_block_it_comes_in,
    test_rows_without_neighbours_are_zero_and_infinities_are_values,
)
from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.attention_kernels import attend, extremes_backward, merge_extremes, share_among_ties
from halocast.runtime.attention_types import AttentionState, Edges, ExtremeState, GatLogits

__all__ = [
    "test_a_block_turns_into_its_gradient",
    "test_an_edge_logit_of_minus_infinity_leaves_its_edge_out",
    "test_dropout_mask_is_the_documented_one_for_any_split",
    "test_equals_scatter_reduce_in_any_number_of_blocks",
    "test_equals_the_dense_softmax_in_any_number_of_blocks",
    "test_exponential_is_within_two_units_in_the_last_place",
    "test_features_and_half_logits_in_one_message",
    "test_features_turn_into_their_gradient",
    "test_gradients_with_dropout",
    "test_huge_logits_do_not_overflow",
    "test_nan_wins_whichever_block_it_comes_in",
    "test_only_values_or_only_half_logits_in_place",
    "test_pack_into_given_memory_from_parts_of_one_buffer",
    "test_rows_and_blocks_without_edges",
    "test_rows_without_neighbours_are_zero_and_infinities_are_values",
    "test_targets_may_have_ranges_of_more_edges",
    "test_widths",
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("emulation")


@pytest.fixture
def path(folder: Path) -> Iterator[str]:
    """In the place of the CPU's paths, for the tests that are imported above."""
    with pytest.MonkeyPatch.context() as patch:
        Emulation(library(folder)).take_over(patch)
        yield "emulated"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "dim"), [(1, 300), (2, 512), (3, 257), (33, 3), (64, 1), (64, 12), (5, 40)])
def test_heads_beyond_a_warp_or_its_registers(path: str, dtype: torch.dtype, kind: str, heads: int, dim: int) -> None:
    problem = Problem.random(40, 50, heads, dim, 0.5, seed=heads + dim)
    assert worst_error(run(problem, kind, dtype, [13]), problem, reference(problem, kind)) <= TOLERANCE[dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [IN_PLACE_DIM, IN_PLACE_DIM + 1, 2 * IN_PLACE_DIM])
def test_wide_heads_turn_into_their_gradient(path: str, dtype: torch.dtype, kind: str, dim: int) -> None:
    block = Block(kind, dtype, dropout=True, shape=(20, 30, 2, dim))
    apart = block.backward(torch.full_like(block.message, torch.nan))
    for name, each in block.backward(block.message).items():
        assert torch.equal(each, apart[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_no_lane_needs_what_another_writes_in_the_same_phase(folder: Path, kind: str) -> None:
    """Then the order in which they run cannot matter."""
    for heads, dim in ((1, 9), (3, 32), (4, 8), (8, 65), (40, 2)):
        problem = Problem.random(45, 60, heads, dim, 0.4, seed=dim)
        nodes = torch.arange(45), torch.arange(60)
        results = []
        for order in ORDERS:
            with pytest.MonkeyPatch.context() as patch:
                Emulation(library(folder), (order,)).take_over(patch)
                results.append(run(problem, kind, torch.float32, [25], DROPOUT, nodes))
        for other in results[1:]:
            for name, each in results[0].items():
                assert torch.equal(other[name], each), name


def test_infinite_and_undefined_logits_make_their_row_undefined(path: str, dtype: torch.dtype) -> None:
    edges = edges_of(torch.ones(3, 70, dtype=torch.bool))
    source = torch.zeros(70, 2, dtype=dtype)
    source[65, 0], source[3, 1] = torch.nan, torch.inf
    state = AttentionState.start(3, 2, 4, source)
    attend(edges, state, torch.ones(70, 8, dtype=dtype), GatLogits(source, torch.zeros(3, 2, dtype=dtype)))
    assert state.out.isnan().all()
    source[65, 0], source[3, 1] = 0.0, -torch.inf
    state = AttentionState.start(3, 2, 4, source)
    attend(edges, state, torch.ones(70, 8, dtype=dtype), GatLogits(source, torch.zeros(3, 2, dtype=dtype)))
    assert state.sum.tolist() == [[70.0, 69.0]] * 3


def extremes(edges: Edges, features: Tensor, grad: Tensor, minimum: bool, nothing: Tensor) -> list[Tensor]:
    state = ExtremeState.start(edges.target_count, features.shape[1], features, minimum=minimum)
    merge_extremes(edges, state, features)
    to = nothing.clone()
    extremes_backward(edges, state, share_among_ties(state, grad), features, to, accumulate=True)
    return [state.value, state.ties, to]


def extreme_case(dim: int, dtype: torch.dtype) -> tuple[Edges, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(dim)
    pattern = torch.rand(37, 90, generator=generator) < 0.3
    features = torch.randint(-3, 4, (90, dim), generator=generator).to(dtype) / 3
    features[5], features[6, ::2], features[7] = -0.0, torch.nan, torch.inf
    grad, nothing = (torch.randn(count, dim, generator=generator).to(dtype) for count in (37, 90))
    return edges_of(pattern), features, grad, nothing


@pytest.mark.parametrize("minimum", [False, True])
@pytest.mark.parametrize("dim", [1, 4, 7, 32, 100, 256, 300, 602, 1024])
def test_extremes_have_the_bits_of_the_cpu(folder: Path, dtype: torch.dtype, dim: int, minimum: bool) -> None:
    case = extreme_case(dim, dtype)
    expected = extremes(*case[:3], minimum, case[3])
    with pytest.MonkeyPatch.context() as patch:
        Emulation(library(folder)).take_over(patch)
        result = extremes(*case[:3], minimum, case[3])
    for ours, cpu in zip(result, expected, strict=True):
        assert torch.equal(ours.view(torch.uint8), cpu.view(torch.uint8))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_no_memory_outside_the_matrices_is_touched(tmp_path: Path) -> None:
    """The emulation on matrices that end where their data does, under the compiler's checks of addresses and arithmetic."""
    assert COMPILER is not None
    program = tmp_path / "fuzz"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [COMPILER, *HOST_FLAGS, *flags, "-o", str(program), str(SOURCES / "fuzz_attend.cpp")],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    if "unrecognized" in built.stderr or "cannot find" in built.stderr:  # an option, or the sanitizer's library
        pytest.skip("the compiler has no address sanitizer")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program), "300"], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr[-3000:]


GPU = "cuda"
needs_gpu = pytest.mark.skipif(
    not (torch.cuda.is_available() and kernels.has_cuda_kernels()),
    reason="torch sees no GPU here, or no CUDA kernels were built",
)


@needs_gpu
@pytest.mark.parametrize("dropout", [None, DROPOUT], ids=["plain", "dropout"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "dim"), [(1, 64), (4, 32), (8, 8), (3, 33), (2, 300), (64, 5)])
def test_gpu_equals_cpu(dtype: torch.dtype, kind: str, heads: int, dim: int, dropout: kernels.Dropout | None) -> None:
    problem = Problem.random(300, 400, heads, dim, 0.1, seed=1)
    nodes = torch.arange(300), torch.arange(400)
    expected = run(problem, kind, dtype, [150], dropout, nodes)
    there = nodes[0].to(GPU), nodes[1].to(GPU)
    results = [run(problem.to(GPU), kind, dtype, [150], dropout, there) for _ in range(2)]
    cpu = {name: each.double() for name, each in expected.items()}
    assert worst_error({name: each.cpu() for name, each in results[0].items()}, problem, cpu) <= 2 * TOLERANCE[dtype]
    for name, each in results[0].items():
        assert torch.equal(each, results[1][name]), f"{name} differs from run to run"


@needs_gpu
@pytest.mark.parametrize("dim", [1, 7, 32, 100, 602])
def test_gpu_extremes_have_the_bits_of_the_cpu(dtype: torch.dtype, dim: int) -> None:
    edges, *matrices = extreme_case(dim, dtype)
    on_gpu = Edges(**{field.name: getattr(edges, field.name).to(GPU) for field in dataclasses.fields(edges)})
    expected = extremes(edges, matrices[0], matrices[1], False, matrices[2])
    result = extremes(on_gpu, matrices[0].to(GPU), matrices[1].to(GPU), False, matrices[2].to(GPU))
    for ours, cpu in zip(result, expected, strict=True):
        assert torch.equal(ours.cpu().view(torch.uint8), cpu.view(torch.uint8))


@needs_gpu
def test_gpu_turns_a_block_into_its_gradient(dtype: torch.dtype) -> None:
    for kind in KINDS:
        block = Block(kind, dtype, dropout=True, device=GPU)
        apart = block.backward(torch.full_like(block.message, torch.nan))
        for name, each in block.backward(block.message).items():
            assert torch.equal(each, apart[name]), name


def test_the_emulated_dropout_is_the_cpus(folder: Path) -> None:
    """Whole results, not masks alone: what is dropped is dropped on both."""
    problem = Problem.random(50, 70, 6, 5, 0.3, seed=4)
    nodes = torch.arange(50) + 2**33, torch.arange(70) * 1000
    expected = run(problem, "gat", torch.float64, [], DROPOUT, nodes)
    with pytest.MonkeyPatch.context() as patch:
        Emulation(library(folder)).take_over(patch)
        result = run(problem, "gat", torch.float64, [], DROPOUT, nodes)
    for name, each in expected.items():
        torch.testing.assert_close(result[name], each, rtol=1e-11, atol=1e-12)
