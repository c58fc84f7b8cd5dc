"""The CUDA kernels of attention on the CPU: their own source for a host, called as the native module is.

See cpp/cuda/lanes.h for what the emulation shows. Jobs mirror the structures of cpp/kernels.h.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from halocast.runtime import attention_kernels, kernels

SOURCES = Path(__file__).parents[3] / "cpp" / "cuda"
COMPILER = shutil.which("g++") or shutil.which("c++")
HOST_FLAGS = ("-std=c++17", "-Og", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")

IN_PLACE_DIM, CHUNK_TARGETS = 256, 32

_LONG, _ADDRESS, _FLAG = ctypes.c_int64, ctypes.c_void_p, ctypes.c_bool


def _structure(name: str, *fields: tuple[str, Any]) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


def _named(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


def _matrix(name: str) -> list[tuple[str, Any]]:
    return [(name, _ADDRESS), (f"{name}_stride", _LONG)]


_Dropout = _structure(
    "Dropout", ("threshold", ctypes.c_uint64), ("scale", ctypes.c_double), ("seed", ctypes.c_uint64),
    ("epoch", ctypes.c_uint32), ("tag", ctypes.c_uint32), ("nodes", _ADDRESS),
)  # fmt: skip
_BlockRows = _structure("BlockRows", *_named(_ADDRESS, "begin end index"), ("rows", _LONG))


@functools.cache
def _jobs(number: Any) -> dict[str, Any]:
    """The structures for float or double."""
    attention = _structure(
        "Attention", *_named(_LONG, "heads dim"), ("slope", number), *_matrix("z"), *_matrix("source_logit"),
        *_matrix("target_logit"), ("edge_logit", _ADDRESS), *_matrix("target"), ("weight", _ADDRESS), ("dropout", _Dropout),
        ("source_nodes", _ADDRESS),
    )  # fmt: skip
    return {
        "attention": attention,
        "attend_forward": _structure(
            "AttendForward", ("attention", attention), ("by_target", _BlockRows), *_named(_ADDRESS, "maximum sum"),
            *_matrix("out"),
        ),
        "attend_finish": _structure("AttendFinish", *_named(_LONG, "rows heads dim"), ("sum", _ADDRESS), *_matrix("out")),
        "attend_pack": _structure(
            "AttendPack", *_named(_LONG, "rows heads dim"), *_matrix("target_logit"), *_named(_ADDRESS, "maximum sum"),
            *_matrix("out"), *_matrix("grad"), ("packed", _ADDRESS),
        ),
        "attend_backward": _structure(
            "AttendBackward", ("attention", attention), ("by_target", _BlockRows), ("by_source", _BlockRows),
            *_named(_ADDRESS, "entry packed"), *_matrix("grad"), ("accumulate", _FLAG), *_matrix("grad_z"),
            *_matrix("grad_source_logit"), *_matrix("grad_target_logit"), ("grad_edge_logit", _ADDRESS),
            *_matrix("grad_target"), *_named(_ADDRESS, "grad_weight workspace"),
        ),
        "extreme_forward": _structure(
            "ExtremeForward", ("by_target", _BlockRows), ("minimum", _FLAG), ("dim", _LONG), *_matrix("features"),
            *_matrix("value"), *_matrix("ties"),
        ),
        "extreme_backward": _structure(
            "ExtremeBackward", ("by_source", _BlockRows), ("dim", _LONG), *_matrix("features"), *_matrix("value"),
            *_matrix("share"), *_matrix("grad_features"), ("accumulate", _FLAG),
        ),
    }  # fmt: skip


ORDERS = ((0, 1), (31, 31), (22, 29))
"""First lane and step: of any two lanes, each comes first in one of the first two."""


class Emulation:
    """Takes the place of the native module in :mod:`halocast.runtime.attention_kernels`."""

    attend_in_place_dim, attend_chunk_targets = IN_PLACE_DIM, CHUNK_TARGETS

    def __init__(self, library: ctypes.CDLL, orders: tuple[tuple[int, int], ...] = ORDERS) -> None:
        self._library, self._orders, self._native = library, itertools.cycle(orders), kernels.native()

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have the wrappers treat every tensor as one of a GPU with these kernels."""
        monkeypatch.setattr(kernels, "native", lambda: self)
        monkeypatch.setattr(kernels, "is_native", lambda tensor: False)
        monkeypatch.setattr(attention_kernels, "_has_cuda_kernels", lambda tensor: True)
        monkeypatch.setattr(attention_kernels, "_launch", lambda start, device, arguments: start(*arguments))

    def __getattr__(self, name: str) -> Any:
        if not name.endswith("_cuda"):
            return getattr(self._native, name)
        kernel = name.removesuffix("_cuda")
        function = getattr(self._library, f"emulate_{kernel}")
        function.restype = None

        def call(is_double: bool, *arguments: Any) -> None:
            jobs = _jobs(ctypes.c_double if is_double else ctypes.c_float)
            given = [jobs["attention"](*each) if isinstance(each, Numbers) else each for each in arguments]
            job = jobs[kernel](*given)
            function(ctypes.c_bool(is_double), ctypes.byref(job), *next(self._orders))

        return call

    @staticmethod
    def Attention(*arguments: Any) -> Numbers:
        """Its fields, until the type of number is known; slots 13 to 18 are the dropout's."""
        return Numbers((*arguments[:13], _Dropout(*arguments[13:19]), arguments[19]))

    @staticmethod
    def BlockRows(*arguments: Any) -> Any:
        return _BlockRows(*arguments)


class Numbers(tuple[Any, ...]):
    """Fields of an Attention."""

    __slots__ = ()


@functools.cache
def library(folder: Path) -> ctypes.CDLL:
    if COMPILER is None:
        pytest.skip("no C++ compiler here")
    built = folder / "emulate_attend.so"
    command = [COMPILER, *HOST_FLAGS, "-shared", "-fPIC", "-o", str(built), str(SOURCES / "emulate_attend.cpp")]
    subprocess.run(command, check=True, timeout=100)
    return ctypes.CDLL(str(built))
