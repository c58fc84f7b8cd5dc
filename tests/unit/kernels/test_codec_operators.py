"""The codec as torch operators: opcheck, the same bytes and errors as the functions they are made of, compiled programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import kernels
from halocast.runtime.exchange import codec, codec_operators
from halocast.runtime.exchange.codec import Layout, Rounding
from halocast.traces.wire import WIDTHS

DIM = 19
LARGEST_SEED = (1 << 64) - 1


def stream_of(seed: int = 5) -> kernels.Stream:
    return kernels.Stream(seed=seed, epoch=7, layer=3, direction=1, purpose=kernels.PURPOSE_ROUNDING)


def problem(rounding: Rounding = Rounding.STOCHASTIC, *, one_sided: bool = False) -> tuple[Tensor, Layout, Tensor]:
    """(rows, layout, nodes) of three peers, one of which gets no rows."""
    rows = torch.randn(18, DIM, generator=torch.Generator().manual_seed(0))
    widths = torch.tensor([*WIDTHS, *reversed(WIDTHS)], dtype=torch.uint8)
    layout = Layout.of(widths, [(2, 7), (0, 0), (1, 11)], DIM, one_sided=one_sided, rounding=rounding)
    return rows.relu() if one_sided else rows, layout, torch.arange(18) * 1_000_000_007


def by_functions(rows: Tensor, layout: Layout, nodes: Tensor, stream: kernels.Stream, **more: Any) -> Tensor:
    wire = torch.zeros(layout.bytes, dtype=torch.uint8)
    codec.pack(rows, wire, layout, stream, nodes, **more)
    return wire


@pytest.mark.parametrize("seed", [5, LARGEST_SEED, 1 << 63])
@pytest.mark.parametrize("rounding", list(Rounding))
@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
def test_operators_give_what_the_functions_do(path: str, rounding: Rounding, one_sided: bool, seed: int) -> None:
    rows, layout, nodes = problem(rounding, one_sided=one_sided)
    stream, ranges = stream_of(seed), torch.zeros(18)
    expected = by_functions(rows, layout, nodes, stream, ranges=ranges)
    wire, found = codec_operators.pack(rows, layout, stream, nodes, with_ranges=True)
    assert torch.equal(wire, expected)
    assert torch.equal(found, ranges)
    for peer in layout.peers:
        part = layout.rows(peer)
        out = torch.zeros(part.stop - part.start, DIM)
        codec.unpack(wire, layout, peer, stream, nodes[part], out)
        assert torch.equal(codec_operators.unpack(wire, layout, peer, stream, nodes[part]), out)


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
def test_chosen_rows_without_ranges(index_type: torch.dtype) -> None:
    rows, layout, nodes = problem()
    index = torch.arange(17, -1, -1, dtype=index_type)
    wire, ranges = codec_operators.pack(rows, layout, stream_of(), nodes, index=index)
    assert torch.equal(wire, by_functions(rows.flip(0), layout, nodes, stream_of()))
    assert ranges.shape == (0,)


def recorded_calls(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[[], object]) -> tuple[Any, ...]:
    """The arguments with which `run` calls an operator."""
    calls: list[tuple[Any, ...]] = []
    operator = getattr(torch.ops.halocast, name)

    def record(*arguments: Any) -> Any:
        calls.append(arguments)
        return operator(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch.ops.halocast, name, record)
        run()
    return calls[0]


@pytest.mark.parametrize("with_ranges", [False, True])
def test_opcheck_of_pack(monkeypatch: pytest.MonkeyPatch, with_ranges: bool) -> None:
    rows, layout, nodes = problem()
    index = torch.arange(18) if with_ranges else None
    arguments = recorded_calls(
        monkeypatch,
        "pack",
        lambda: codec_operators.pack(rows, layout, stream_of(LARGEST_SEED), nodes, index=index, with_ranges=with_ranges),
    )
    torch.library.opcheck(torch.ops.halocast.pack.default, arguments)


def test_opcheck_of_unpack(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, layout, nodes = problem(Rounding.ROTATED)
    wire = by_functions(rows, layout, nodes, stream_of())
    for peer in layout.peers:
        part = nodes[layout.rows(peer)]
        run = lambda peer=peer, part=part: codec_operators.unpack(wire, layout, peer, stream_of(), part)  # noqa: E731
        torch.library.opcheck(torch.ops.halocast.unpack.default, recorded_calls(monkeypatch, "unpack", run))


def test_a_compiled_program_sends_the_same_bytes() -> None:
    """In one graph, and again with other rows and another epoch."""
    rows, layout, nodes = problem(one_sided=True)
    part = nodes[layout.rows(1)]

    def program(x: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        stream = kernels.Stream(seed=LARGEST_SEED, epoch=epoch, layer=3, purpose=kernels.PURPOSE_ROUNDING)
        wire, _ = codec_operators.pack(x.relu(), layout, stream, nodes)
        return wire, codec_operators.unpack(wire, layout, 1, stream, part) * 2

    compiled = torch.compile(program, backend="aot_eager", fullgraph=True)
    for epoch in (0, 1, 2):
        x = rows - 0.1 * epoch
        for found, expected in zip(compiled(x, epoch), program(x, epoch), strict=True):
            assert torch.equal(found, expected)


def test_no_gradient_flows_through_a_message() -> None:
    rows, layout, nodes = problem()
    wire, _ = codec_operators.pack(rows.requires_grad_(), layout, stream_of(), nodes)
    assert not codec_operators.unpack(wire, layout, 2, stream_of(), nodes[:7]).requires_grad


def test_errors_are_those_of_the_functions() -> None:
    rows, layout, nodes = problem()
    wire, _ = codec_operators.pack(rows, layout, stream_of(), nodes)
    later = kernels.Stream(seed=5, epoch=8, layer=3, direction=1, purpose=kernels.PURPOSE_ROUNDING)
    with pytest.raises(codec.WireError, match="message is of epoch 7, 8 is under way"):
        codec_operators.unpack(wire, layout, 2, later, nodes[:7])
    length = layout.segment(1).stop - layout.segment(1).start
    with pytest.raises(codec.WireError, match=f"message is {length - 1} bytes long, {length} were agreed"):
        codec_operators.unpack(wire[:-1].clone(), layout, 1, stream_of(), nodes[7:])
    with pytest.raises(MisuseError, match="no message of peer 3; its peers: 2, 0, 1"):
        codec_operators.unpack(wire, layout, 3, stream_of(), nodes[:7])
    with pytest.raises(MisuseError, match="the stream's purpose is 0; rounding takes 1"):
        codec_operators.pack(rows, layout, kernels.Stream(seed=0, epoch=0, layer=0), nodes)
    with pytest.raises(MisuseError, match="rows is float64; messages are made of float32"):
        codec_operators.pack(rows.double(), layout, stream_of(), nodes)
    rows[4, 2] = float("nan")
    with pytest.raises(codec.UnsendableRowError, match="row 4 cannot be sent: NaN") as caught:
        codec_operators.pack(rows, layout, stream_of(), nodes)
    assert caught.value.row == 4
