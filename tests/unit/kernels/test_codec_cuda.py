"""The CUDA codec, bit for bit against the CPU's and the reference: on a GPU where there is one, and emulated everywhere.

The emulation is the kernels' own source, compiled for the host with a warp that takes its lanes one by one
(cpp/cuda/lanes.h). It shows what the kernels compute and which memory they touch, not how a GPU orders it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.kernels.codec_reference import pack_message, unpack_row
from torch import Tensor

from halocast.errors import MisuseError
from halocast.runtime import kernels
from halocast.runtime.exchange import codec
from halocast.traces.wire import CODED_WIDTHS, WIDTHS

SOURCES = Path(__file__).parents[3] / "cpp" / "cuda"
COMPILER = shutil.which("g++") or shutil.which("c++")
HOST_FLAGS = ("-std=c++17", "-Og", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")

DIMS = [*range(1, 71), 100, 256, 602]
LONG_DIMS = [1023, 1024, 1025, 1100, 2050, 4096]
GUARD = 0xA5
GUARDED = 16
"""Bytes before and after a buffer that nothing may touch."""

Run = Callable[..., int]


@functools.cache
def emulation(folder: Path) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("no C++ compiler here")
    library = folder / "emulate.so"
    command = [COMPILER, *HOST_FLAGS, "-shared", "-fPIC", "-o", str(library), str(SOURCES / "emulate.cpp")]
    subprocess.run(command, check=True, timeout=100)
    loaded = ctypes.CDLL(str(library))
    address, long, flag, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_bool, ctypes.c_int
    rows, index = [address, long], [flag, address]
    records = [address, address, long, long, flag, number, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32, address]
    order = [number, number]
    loaded.emulate_pack.argtypes = [*rows, *index, address, long, *records, address, address, long, address, address, *order]
    loaded.emulate_unpack.argtypes = [address, long, *records, *rows, *index, flag, address, *order]
    loaded.emulate_pack.restype = loaded.emulate_unpack.restype = flag
    return loaded


class Kernels:
    """pack and unpack on raw tensors of one device, returning the first bad row or −1: what the native functions do."""

    def __init__(self, device: str, run_pack: Run, run_unpack: Run, *last: int) -> None:
        self.device = device
        self._run_pack, self._run_unpack, self._last = run_pack, run_unpack, last

    def pack(
        self,
        rows: Tensor,
        wire: Tensor,
        layout: codec.Layout,
        stream: kernels.Stream,
        nodes: Tensor,
        index: Tensor | None = None,
        ranges: Tensor | None = None,
    ) -> int:
        first_bad = torch.full((1,), len(layout), device=self.device)
        result = self._run_pack(
            *kernels.place(rows), index is not None and index.dtype == torch.int64, kernels.address(index),
            wire.data_ptr(), wire.numel(), layout.widths.data_ptr(), layout.offsets.data_ptr(), len(layout), layout.dim,
            layout.one_sided, layout.rounding.code, stream.seed, stream.epoch, stream.tag, nodes.data_ptr(),
            layout.headers.data_ptr(), layout.header_offsets.data_ptr(), len(layout.peers), kernels.address(ranges),
            first_bad.data_ptr(), *self._last,
        )  # fmt: skip
        return self._found(result, first_bad, len(layout))

    def unpack(
        self,
        wire: Tensor,
        layout: codec.Layout,
        part: slice,
        stream: kernels.Stream,
        nodes: Tensor,
        out: Tensor,
        index: Tensor | None = None,
        accumulate: bool = False,
    ) -> int:
        widths, offsets = layout.widths[part], layout.offsets[part]
        first_bad = torch.full((1,), widths.numel(), device=self.device)
        result = self._run_unpack(
            wire.data_ptr(), wire.numel(), widths.data_ptr(), offsets.data_ptr(), widths.numel(), layout.dim,
            layout.one_sided, layout.rounding.code, stream.seed, stream.epoch, stream.tag, nodes.data_ptr(),
            *kernels.place(out), index is not None and index.dtype == torch.int64, kernels.address(index), accumulate,
            first_bad.data_ptr(), *self._last,
        )  # fmt: skip
        return self._found(result, first_bad, widths.numel())

    @staticmethod
    def _found(result: Any, first_bad: Tensor, count: int) -> int:
        assert result is None or result, "the emulation refused the rows"
        row = int(first_bad)
        return row if row < count else -1


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulation(tmp_path_factory.mktemp("emulation"))


FORWARDS, BACKWARDS = (0, 1), (31, 31)
"""First lane and step: of any two lanes, each comes first in one of the two."""


@pytest.fixture(params=["emulated", "gpu"])
def way(request: pytest.FixtureRequest) -> Kernels:
    if request.param == "emulated":
        library = request.getfixturevalue("library")
        orders = itertools.cycle([FORWARDS, BACKWARDS, (22, 29)])
        return Kernels(
            "cpu",
            lambda *arguments: library.emulate_pack(*arguments, *next(orders)),
            lambda *arguments: library.emulate_unpack(*arguments, *next(orders)),
        )
    native = kernels.native()
    if not torch.cuda.is_available():
        pytest.skip("torch sees no GPU here")
    if not hasattr(native, "cuda_codec"):
        pytest.skip("the kernels were built without CUDA")
    return Kernels("cuda", native.pack_cuda, native.unpack_cuda, torch.cuda.current_stream().cuda_stream)


def stream_of(seed: int = 0x299F31D0A4093822) -> kernels.Stream:
    return kernels.Stream(seed=seed, epoch=7, layer=3, direction=1, purpose=kernels.PURPOSE_ROUNDING)


def rows_of(count: int, dim: int, *, one_sided: bool, seed: int = 0) -> Tensor:
    """Rows of several sizes, as training has them; some constant, some of zeros, some with −0."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator) * 10.0 ** torch.randint(-3, 4, (count, 1), generator=generator)
    rows[1::11] = 0.75
    rows[2::11] = 0.0
    rows[3::11] *= 1e-42
    rows[4::11] *= 1e33
    if one_sided:
        rows = rows.relu()
    rows[:, ::7] *= 0.0  # zeros of both signs
    return rows


def layout_of(widths: Tensor, dim: int, *, one_sided: bool, rounding: str, device: str = "cpu", peers: int = 3) -> codec.Layout:
    """The rows as messages of some peers, one of which has none."""
    ends = [round(len(widths) * (peer + 1) / peers) for peer in range(peers)]
    counts = [(peer, end - start) for peer, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]
    counts.insert(1, (99, 0))
    return codec.Layout.of(
        widths, counts, dim, one_sided=one_sided, rounding=codec.Rounding(rounding), device=torch.device(device)
    )


def nodes_of(count: int) -> Tensor:
    return (torch.arange(count) * 0x1234567_89 + 17) % (1 << 40)


def random_widths(count: int, seed: int = 0) -> Tensor:
    return torch.tensor(WIDTHS, dtype=torch.uint8)[torch.randint(len(WIDTHS), (count,), generator=generator(seed))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Guarded:
    """A buffer of bytes that starts `shift` bytes after an aligned address, between guards."""

    def __init__(self, count: int, device: str, shift: int = 0) -> None:
        self._all = torch.full((count + 2 * GUARDED + shift,), GUARD, dtype=torch.uint8, device=device)
        self.inner = self._all[GUARDED + shift : GUARDED + shift + count]

    def check(self) -> Tensor:
        """The bytes on the CPU, if the guards are untouched."""
        everything = self._all.cpu()
        before = self.inner.storage_offset()
        assert (everything[:before] == GUARD).all(), "bytes before the buffer were written"
        assert (everything[before + self.inner.numel() :] == GUARD).all(), "bytes after the buffer were written"
        return everything[before : before + self.inner.numel()]


def expected_wire(rows: Tensor, layout: codec.Layout, nodes: Tensor, index: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(wire, ranges) as the CPU's codec makes them."""
    wire, ranges = torch.zeros(layout.bytes, dtype=torch.uint8), torch.zeros(len(layout))
    codec.pack(rows, wire, layout, stream_of(), nodes, index=index, ranges=ranges)
    return wire, ranges


def check_both_ways(
    way: Kernels,
    rows: Tensor,
    widths: Tensor,
    *,
    one_sided: bool,
    rounding: str,
    index: Tensor | None = None,
    shift: int = 0,
) -> None:
    """Pack and unpack what the CPU does, and compare every byte."""
    dim, nodes = rows.shape[1], nodes_of(len(widths))
    here = layout_of(widths, dim, one_sided=one_sided, rounding=rounding)
    there = layout_of(widths, dim, one_sided=one_sided, rounding=rounding, device=way.device)
    expected, expected_ranges = expected_wire(rows, here, nodes, index)
    device_index = None if index is None else index.to(way.device)
    device_nodes = nodes.to(way.device)

    wire = Guarded(there.bytes, way.device, shift)
    ranges = torch.full((len(widths),), -1.0, device=way.device)
    device_rows = rows.to(way.device) if way.device != "cpu" else rows
    assert way.pack(device_rows, wire.inner, there, stream_of(), device_nodes, device_index, ranges) == -1
    assert torch.equal(wire.check(), expected)
    assert torch.equal(ranges.cpu(), expected_ranges)

    for peer in there.peers:
        part = there.rows(peer)
        count = part.stop - part.start
        for accumulate, target in ((False, None), (True, torch.randperm(count + 3, generator=generator(1))[:count])):
            start = torch.randn(count + 3, dim, generator=generator(2))
            by_cpu, by_way = start.clone(), start.to(way.device, copy=True)
            codec.unpack(expected, here, peer, stream_of(), nodes[part], by_cpu, index=target, accumulate=accumulate)
            found = way.unpack(
                wire.inner, there, part, stream_of(), device_nodes[part], by_way,
                None if target is None else target.to(way.device), accumulate,
            )  # fmt: skip
            assert found == -1
            assert torch.equal(by_way.cpu().view(torch.int32), by_cpu.view(torch.int32))
    wire.check()


@pytest.mark.parametrize("rounding", ["stochastic", "nearest", "rotated"])
@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_and_dim_equals_the_cpu(way: Kernels, width: int, one_sided: bool, rounding: str) -> None:
    for dim in DIMS:
        rows = rows_of(13, dim, one_sided=one_sided)
        if rounding == "rotated":
            rows = rows.clamp(-1e15, 1e15)
        widths = torch.full((13,), width, dtype=torch.uint8)
        check_both_ways(way, rows, widths, one_sided=one_sided, rounding=rounding, shift=dim % 4)


@pytest.mark.parametrize("rounding", ["stochastic", "rotated"])
@pytest.mark.parametrize("dim", [1, 3, 8, 20, 31, 32, 33, 64, 100, 127, 128, 200, 256, 257, 512, 602, *LONG_DIMS])
def test_mixed_widths_equal_the_cpu(way: Kernels, dim: int, rounding: str) -> None:
    for one_sided in (False, True):
        rows = rows_of(41, dim, one_sided=one_sided).clamp(-1e15, 1e15)
        for shift in range(4):
            check_both_ways(way, rows, random_widths(41, shift), one_sided=one_sided, rounding=rounding, shift=shift)


@pytest.mark.parametrize("index_type", [torch.int32, torch.int64])
@pytest.mark.parametrize("columns", [(0, 100), (4, 104), (2, 66), (1, 65), (3, 10)], ids=str)
def test_strided_and_indexed_rows(way: Kernels, columns: tuple[int, int], index_type: torch.dtype) -> None:
    """Columns that start, and rows that follow, at addresses of any alignment."""
    for width_of_matrix in (104, 106, 107):
        rows = rows_of(50, width_of_matrix, one_sided=False)
        if way.device != "cpu":
            rows = rows.to(way.device)
        part = rows[:, columns[0] : columns[1]]
        index = torch.randint(50, (33,), generator=generator(3)).to(index_type)
        dim, nodes, widths = part.shape[1], nodes_of(33), random_widths(33)
        here = layout_of(widths, dim, one_sided=False, rounding="stochastic")
        there = layout_of(widths, dim, one_sided=False, rounding="stochastic", device=way.device)
        expected, _ = expected_wire(part.cpu(), here, nodes, index)
        wire = Guarded(there.bytes, way.device)
        assert way.pack(part, wire.inner, there, stream_of(), nodes.to(way.device), index.to(way.device)) == -1
        assert torch.equal(wire.check(), expected)

        matrix = torch.zeros(60, width_of_matrix, device=way.device)
        target = torch.randperm(60, generator=generator(4))[:33].to(index_type)
        out = matrix[:, columns[0] : columns[1]]
        found = way.unpack(wire.inner, there, slice(0, 33), stream_of(), nodes.to(way.device), out, target.to(way.device))
        assert found == -1
        by_cpu = torch.zeros(60, dim)
        for peer in here.peers:
            mine = here.rows(peer)
            codec.unpack(expected, here, peer, stream_of(), nodes[mine], by_cpu, index=target[mine])
        assert torch.equal(out.cpu(), by_cpu)
        matrix[:, columns[0] : columns[1]] = 0
        assert not matrix.any(), "columns outside were written"


@pytest.mark.parametrize("rounding", ["stochastic", "nearest", "rotated"])
@pytest.mark.parametrize("one_sided", [False, True], ids=["two-sided", "one-sided"])
@pytest.mark.parametrize("dim", [1, 7, 20, 33])
def test_messages_equal_the_reference(way: Kernels, dim: int, one_sided: bool, rounding: str) -> None:
    """Against docs/wire-format.md itself, not by way of the CPU's codec."""
    rows = rows_of(20, dim, one_sided=one_sided).clamp(-1e15, 1e15)
    widths, nodes = random_widths(20, dim), nodes_of(20)
    layout = codec.Layout.of(
        widths, [(5, 20)], dim, one_sided=one_sided, rounding=codec.Rounding(rounding), device=torch.device(way.device)
    )
    settings: dict[str, Any] = {"one_sided": one_sided, "codec": rounding, "stream": stream_of()}
    message = pack_message(rows.numpy(), widths.tolist(), nodes.tolist(), **settings)
    wire = Guarded(layout.bytes, way.device)
    assert way.pack(rows.to(way.device), wire.inner, layout, stream_of(), nodes.to(way.device)) == -1
    assert wire.check().numpy().tobytes() == message

    out = torch.zeros(20, dim, device=way.device)
    assert way.unpack(wire.inner, layout, slice(0, 20), stream_of(), nodes.to(way.device), out) == -1
    starts = [*layout.offsets.tolist(), len(message)]
    for row, width in enumerate(widths.tolist()):
        record = message[starts[row] : starts[row + 1]]
        decoded = unpack_row(record, width, dim, **settings, node=int(nodes[row]))
        np.testing.assert_array_equal(out[row].cpu().numpy().view(np.int32), decoded.view(np.int32))


@pytest.mark.parametrize("rounding", ["stochastic", "rotated"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("value", "one_sided"),
    [("nan", False), ("inf", True), ("-inf", False), (2.0**126, False), (-(2.0**126), False), (-1.0, True)],
)
def test_the_lowest_unsendable_row_is_found(way: Kernels, value: Any, one_sided: bool, width: int, rounding: str) -> None:
    for dim in (1, 9, 128, 602, 1500):
        rows = rows_of(90, dim, one_sided=one_sided).clamp(-1e15, 1e15)
        for bad in (88, 17, 40):
            rows[bad, dim // 2] = float(value)
        widths, nodes = torch.full((90,), width, dtype=torch.uint8), nodes_of(90)
        here = layout_of(widths, dim, one_sided=one_sided, rounding=rounding)
        there = layout_of(widths, dim, one_sided=one_sided, rounding=rounding, device=way.device)
        expected = -1
        try:
            expected_wire(rows, here, nodes)
        except codec.UnsendableRowError as error:
            expected = error.row
        assert expected == (-1 if width == 32 or (width == 16 and value == -1.0) else 17)
        wire = Guarded(there.bytes, way.device)
        assert way.pack(rows.to(way.device), wire.inner, there, stream_of(), nodes.to(way.device)) == expected
        wire.check()


def test_records_outside_the_buffer_and_unknown_widths_are_reported_and_left_out(way: Kernels) -> None:
    for width, dim in ((4, 20), (1, 33), (16, 5), (32, 8), (2, 64)):
        for rounding in ("stochastic", "rotated"):
            widths, nodes = torch.full((40,), width, dtype=torch.uint8), nodes_of(40).to(way.device)
            layout = codec.Layout.of(
                widths, [(0, 40)], dim, one_sided=False, rounding=codec.Rounding(rounding), device=way.device
            )
            wire = Guarded(layout.bytes, way.device)
            rows = rows_of(40, dim, one_sided=False).clamp(-1e15, 1e15).to(way.device)
            assert way.pack(rows, wire.inner, layout, stream_of(), nodes) == -1
            untouched = torch.full((40, dim), 7.0, device=way.device)

            out = untouched.clone()
            assert way.unpack(wire.inner[:-1], layout, slice(0, 40), stream_of(), nodes, out) == 39
            assert torch.equal(out[39], untouched[39])
            layout.offsets[30], layout.offsets[21] = layout.bytes, -1
            assert way.unpack(wire.inner, layout, slice(0, 40), stream_of(), nodes, out) == 21
            layout.widths[5] = 7
            assert way.unpack(wire.inner, layout, slice(0, 40), stream_of(), nodes, untouched) == 5
            assert (untouched[[5, 21, 30]] == 7.0).all()


def test_no_rows_give_headers_only(way: Kernels) -> None:
    layout = layout_of(torch.empty(0, dtype=torch.uint8), 12, one_sided=True, rounding="rotated", device=way.device)
    wire = Guarded(layout.bytes, way.device)
    assert way.pack(torch.empty(0, 12, device=way.device), wire.inner, layout, stream_of(), nodes_of(0).to(way.device)) == -1
    empty = layout_of(torch.empty(0, dtype=torch.uint8), 12, one_sided=True, rounding="rotated")
    assert torch.equal(wire.check(), expected_wire(torch.empty(0, 12), empty, nodes_of(0))[0])


@pytest.mark.parametrize("rounding", ["stochastic", "rotated"])
@pytest.mark.parametrize("order", [FORWARDS, BACKWARDS], ids=["forwards", "backwards"])
def test_no_lane_needs_what_another_writes_in_the_same_phase(library: ctypes.CDLL, order: Any, rounding: str) -> None:
    """Then the order in which they run cannot matter."""
    one_order = Kernels(
        "cpu",
        lambda *arguments: library.emulate_pack(*arguments, *order),
        lambda *arguments: library.emulate_unpack(*arguments, *order),
    )
    for dim in (1, 3, 5, 7, 11, 13, 30, 32, 43, 61, 64, 85, 100, 125, 171, 254, 300, 602, 1100):
        for seed in range(4):
            rows, widths = rows_of(33, dim, one_sided=False).clamp(-1e15, 1e15), random_widths(33, seed)
            widths[widths > 8] = 3  # so that records follow each other
            check_both_ways(one_order, rows, widths, one_sided=False, rounding=rounding)


def test_rows_too_long_for_the_rotated_codec_are_refused(way: Kernels) -> None:
    layout = layout_of(torch.full((2,), 2, dtype=torch.uint8), 4097, one_sided=False, rounding="rotated", device=way.device)
    rows, wire = torch.randn(2, 4097).to(way.device), Guarded(layout.bytes, way.device)
    with pytest.raises((RuntimeError, AssertionError), match=r"at most 4096 values|refused"):
        way.pack(rows, wire.inner, layout, stream_of(), nodes_of(2).to(way.device))


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_no_memory_outside_the_buffers_is_touched(tmp_path: Path) -> None:
    """The emulation on buffers that end where their data does, under the compiler's checks of addresses and arithmetic."""
    assert COMPILER is not None
    program = tmp_path / "fuzz"
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    built = subprocess.run(
        [COMPILER, *HOST_FLAGS, *flags, "-o", str(program), str(SOURCES / "fuzz.cpp")],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    if "unrecognized" in built.stderr or "cannot find" in built.stderr:  # an option, or the sanitizer's library
        pytest.skip("the compiler has no address sanitizer")
    assert built.returncode == 0, built.stderr
    ran = subprocess.run([str(program), "500"], capture_output=True, text=True, timeout=100)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
def test_the_codec_serves_gpu_tensors() -> None:
    """The public functions, on whatever the module was built with."""
    rows, widths, nodes = rows_of(70, 100, one_sided=True), random_widths(70), nodes_of(70)
    here = layout_of(widths, 100, one_sided=True, rounding="stochastic")
    there = layout_of(widths, 100, one_sided=True, rounding="stochastic", device="cuda")
    expected, _ = expected_wire(rows, here, nodes)
    wire = torch.zeros(there.bytes, dtype=torch.uint8, device="cuda")
    codec.pack(rows.cuda(), wire, there, stream_of(), nodes.cuda())
    assert torch.equal(wire.cpu(), expected)
    rows[50, 3] = float("nan")
    with pytest.raises(codec.UnsendableRowError, match="NaN") as caught:
        codec.pack(rows.cuda(), wire, there, stream_of(), nodes.cuda())
    assert caught.value.row == min(row for row in [50] if widths[row] != 32)
    with pytest.raises(MisuseError):
        codec.pack(rows, wire, there, stream_of(), nodes.cuda())


def test_coded_widths_are_all_that_the_kernels_take() -> None:
    """A new width needs a case of stage_codes in cpp/cuda/wire.h."""
    assert CODED_WIDTHS == (1, 2, 3, 4, 5, 6, 8)
