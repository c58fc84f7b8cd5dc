"""Each kernel test runs on every instruction set of this machine, and on the torch path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from halocast.runtime import kernels

PATHS = ("portable", "avx2", "avx512", "torch")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test once with each native path that can run here, and once with what other devices use."""
    before = kernels.isa()
    if request.param == "torch":
        monkeypatch.setattr(kernels, "is_native", lambda tensor: False)
    elif request.param in kernels.available_isas():
        kernels.set_isa(request.param)
    else:
        pytest.skip(f"{request.param} cannot run on this processor")
    yield request.param
    kernels.set_isa(before)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small jobs wait long for a second thread on a busy machine; the tests of threads ask for more themselves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


@pytest.fixture
def close(dtype: torch.dtype) -> dict[str, Any]:
    """Elementwise tolerance of a sum of some tens of terms of order one."""
    return {"rtol": 2e-5, "atol": 5e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
