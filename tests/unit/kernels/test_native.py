"""Loading, choice of instruction set, and threads: torch's pool, our own, and both after a fork."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from halocast.errors import MisuseError, RunError
from halocast.runtime import kernels

SUM_TWICE = """
import os, sys, torch
from halocast.runtime import kernels
source, expected = torch.ones(200_000, 8), [200_000.0] * 8
torch.set_num_threads(2)
if "own" in sys.argv:
    kernels.native().attach_openmp(0)
for _ in range(3):
    assert kernels.column_sum(source).tolist() == expected
child = os.fork()
if child == 0:
    os._exit(0 if kernels.column_sum(source).tolist() == expected else 1)
assert os.waitpid(child, 0)[1] == 0
assert kernels.column_sum(source).tolist() == expected
"""


def run_python(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("pool", ["torch", "own"])
def test_threads_before_and_after_a_fork(pool: str) -> None:
    result = run_python(SUM_TWICE, pool)
    assert result.returncode == 0, result.stderr


def test_the_openmp_library_is_the_one_torch_loaded() -> None:
    found = kernels._loaded_openmp()
    if found is None:
        pytest.skip("this torch does not use GNU OpenMP")
    assert "libgomp" in found


def test_instruction_set_is_chosen_and_refused() -> None:
    available, before = kernels.available_isas(), kernels.isa()
    assert available[0] == "portable"
    for name in available:
        kernels.set_isa(name)
        assert kernels.isa() == name
    kernels.set_isa(before)
    with pytest.raises(MisuseError, match=r"instruction set 'avx9' .* cannot run here; allowed: portable"):
        kernels.set_isa("avx9")
    assert kernels.isa() == before


def test_environment_forces_the_instruction_set() -> None:
    show = "from halocast.runtime import kernels; print(kernels.isa())"
    assert run_python(show, HALOCAST_ISA="portable").stdout.strip() == "portable"
    assert run_python(show, HALOCAST_ISA="").stdout.strip() == kernels.available_isas()[-1]
    catch = f"from halocast.errors import MisuseError\ntry:\n    {show}\nexcept MisuseError as error:\n    print(error)"
    catch = catch.replace("; print", "\n    print")
    assert "instruction set 'sse' (HALOCAST_ISA) is unknown" in run_python(catch, HALOCAST_ISA="sse").stdout


def test_a_missing_module_says_how_to_build_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "halocast._kernels", None)
    monkeypatch.delattr("halocast._kernels", raising=False)
    kernels.native.cache_clear()
    try:
        with pytest.raises(RunError, match="build them with `make build`") as caught:
            kernels.isa()
        assert "\n" not in str(caught.value)
    finally:
        kernels.native.cache_clear()


def test_huge_pages_leave_contents_alone() -> None:
    buffer = torch.arange(3_000_000, dtype=torch.float32)
    assert isinstance(kernels.advise_huge_pages(buffer), bool)
    assert torch.equal(buffer, torch.arange(3_000_000, dtype=torch.float32))
    assert kernels.advise_huge_pages(torch.zeros(1)) is False
    assert kernels.advise_huge_pages(torch.zeros(0)) is False
