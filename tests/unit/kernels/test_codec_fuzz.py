"""The codec under inputs that nobody would choose: any floats to pack, any bytes to unpack, and the compiler's sanitizers."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.unit.kernels.codec_reference import pack_message
from torch import Tensor

from halocast.runtime import kernels
from halocast.runtime.exchange import codec
from halocast.runtime.exchange.codec import Layout, Rounding
from halocast.traces.wire import HEADER_BYTES, WIDTHS

SOURCES = Path(__file__).parents[3] / "cpp"
COMPILER = shutil.which("g++") or shutil.which("c++")
# Without optimisation, which with the checks would take minutes, and without checks that repeat the address sanitizer's.
SANITIZERS = (
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,object-size,pointer-overflow,vptr",
    "-fno-sanitize-recover=all",
)
HOST_FLAGS = ("-std=c++17", "-O0", "-g1", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", *SANITIZERS)
JOBS = 500
STREAM = kernels.Stream(seed=3, epoch=2, layer=1, purpose=kernels.PURPOSE_ROUNDING)

any_bits = st.integers(0, 2**32 - 1)
usual_values = st.floats(-100, 100, width=32).map(lambda x: struct.unpack("<I", struct.pack("<f", x))[0])
layouts = st.builds(
    lambda widths, dim, one_sided, rounding: Layout.of(
        torch.tensor(widths, dtype=torch.uint8), [(0, len(widths))], dim, one_sided=one_sided, rounding=rounding
    ),
    st.lists(st.sampled_from(WIDTHS), max_size=9),
    st.integers(1, 80),
    st.booleans(),
    st.sampled_from(Rounding),
)


@contextmanager
def on(isa: str) -> Iterator[None]:
    before = kernels.isa()
    kernels.set_isa(isa)
    try:
        yield
    finally:
        kernels.set_isa(before)


def sendable(rows: Tensor, layout: Layout) -> list[bool]:
    """By the document's words on rows that cannot be sent."""
    found = []
    for row, width in zip(rows, layout.widths.tolist(), strict=True):
        rotated = layout.rounding is Rounding.ROTATED and width <= 2
        small = bool((row.abs() < (2.0**56 if rotated else 2.0**126)).all())  # NaN is not
        found.append(width == 32 or (small and not (layout.one_sided and width <= 8 and bool((row < 0).any()))))
    return found


@given(layouts, st.data())
@settings(max_examples=150, deadline=None)
def test_any_floats_give_the_reference_bytes_or_the_lowest_bad_row(layout: Layout, data: st.DataObject) -> None:
    """With each instruction set."""
    values = st.one_of(usual_values, any_bits) if data.draw(st.booleans(), "with any bits") else usual_values
    count = len(layout) * layout.dim
    base = data.draw(st.lists(values, min_size=min(count, 12), max_size=min(count, 60)), "values")
    # A list that long would be slow to draw; its values repeat.
    words = torch.tensor((base * (count // max(1, len(base)) + 1))[:count], dtype=torch.int64)
    rows = words.to(torch.int32).view(torch.float32).view(len(layout), layout.dim)
    if layout.one_sided and data.draw(st.booleans(), "after ReLU"):
        rows = rows.relu()
    nodes = torch.arange(len(layout)) * 99_999_999_977 % (1 << 40)
    can = sendable(rows, layout)
    for isa in kernels.available_isas():
        wire = torch.zeros(layout.bytes, dtype=torch.uint8)
        with on(isa):
            if all(can):
                codec.pack(rows, wire, layout, STREAM, nodes)
                assert wire.numpy().tobytes() == pack_message(
                    rows.numpy(), layout.widths.tolist(), nodes.tolist(),
                    one_sided=layout.one_sided, codec=layout.rounding.value, stream=STREAM,
                )  # fmt: skip
            else:
                with pytest.raises(codec.UnsendableRowError) as caught:
                    codec.pack(rows, wire, layout, STREAM, nodes)
                assert caught.value.row == can.index(False)


@given(layouts, st.randoms(use_true_random=False))
@settings(max_examples=150, deadline=None)
def test_any_records_decode_alike_on_every_path(layout: Layout, random: Random) -> None:
    """Behind a true header: each instruction set makes the same of them as the first, and touches no other row."""
    count, dim = len(layout), layout.dim
    wire = torch.zeros(layout.bytes, dtype=torch.uint8)
    nodes = torch.arange(count)
    codec.pack(torch.zeros(count, dim), wire, layout, STREAM, nodes)
    noise = random.randbytes(layout.bytes - HEADER_BYTES)
    wire[HEADER_BYTES:] = torch.tensor(list(noise), dtype=torch.uint8)
    first = None
    for isa in kernels.available_isas():
        out = torch.full((count + 1, dim), 7.0)
        with on(isa):
            codec.unpack(wire, layout, 0, STREAM, nodes, out)
        assert (out[count] == 7.0).all()
        first = out if first is None else first
        assert torch.equal(out.nan_to_num(nan=123.0), first.nan_to_num(nan=123.0))
        assert torch.equal(out.isnan(), first.isnan())


@given(layouts, st.binary(max_size=3000))
@settings(max_examples=150, deadline=None)
def test_bytes_that_are_no_message_are_refused(layout: Layout, noise: bytes) -> None:
    assume(not noise.startswith(b"HCQ1"))
    wire = torch.tensor(list(noise), dtype=torch.uint8)
    out = torch.full((len(layout), layout.dim), 7.0)
    with pytest.raises(codec.WireError, match="were agreed" if len(noise) < layout.bytes else "message starts with"):
        codec.unpack(wire, layout, 0, STREAM, torch.arange(len(layout)), out)
    assert (out == 7.0).all()


def flags_of(isa: str) -> list[str]:
    """As the build has them."""
    found = re.search(rf"^set\(flags_{isa} (.*)\)$", (SOURCES.parent / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert found, f"CMakeLists.txt has no flags_{isa}"
    return [] if found[1] == '""' else found[1].split()


def compile_with(arguments: list[str]) -> None:
    assert COMPILER is not None
    built = subprocess.run([COMPILER, *HOST_FLAGS, *arguments], capture_output=True, text=True, timeout=110, check=False)
    if re.search(r"unrecogni[sz]ed|cannot find|unsupported option", built.stderr):  # an option, or the sanitizer's library
        pytest.skip("the compiler has no address sanitizer")
    assert built.returncode == 0, built.stderr[-3000:]


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
@pytest.mark.timeout(300)
def test_no_memory_outside_the_buffers_is_touched(tmp_path: Path) -> None:
    """cpp/tests/fuzz_codec.cpp, with every instruction set that runs here."""
    isas, objects = kernels.available_isas(), []
    for isa in isas:
        objects.append(str(tmp_path / f"codec_{isa}.o"))
        compile_with([*flags_of(isa), f"-DHALOCAST_ISA={isa}", "-c", str(SOURCES / "codec.cpp"), "-o", objects[-1]])
    program = tmp_path / "fuzz_codec"
    sources = [str(SOURCES / "tests" / "fuzz_codec.cpp"), str(SOURCES / "parallel.cpp")]
    compile_with([*sources, *objects, "-pthread", "-o", str(program)])
    ran = subprocess.run([str(program), str(JOBS)], capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.split() == isas
