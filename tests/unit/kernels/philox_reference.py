"""A NumPy transcription of Philox4x32-10 and of the counters halocast gives it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from halocast.runtime import kernels


def reference(counter: Sequence[np.ndarray], key: list[int]) -> list[np.ndarray]:
    """Section 3.3 of Salmon et al. 2011, on uint64 arrays that hold 32-bit words."""
    c = [np.asarray(word, dtype=np.uint64) for word in counter]
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for turn in range(10):
        left, right = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        k0 = np.uint64((key[0] + turn * 0x9E3779B9) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + turn * 0xBB67AE85) & 0xFFFFFFFF)
        c = [(right >> shift) ^ c[1] ^ k0, right & mask, (left >> shift) ^ c[3] ^ k1, left & mask]
    return c


def reference_words(stream: kernels.Stream, nodes: list[int], dim: int) -> np.ndarray:
    element = np.arange(dim)
    node = np.array(nodes, dtype=np.uint64)[:, None]
    fourth = stream.purpose << 28 | stream.direction << 24 | stream.layer << 8
    counter = np.broadcast_arrays(
        element // 4, node & np.uint64(0xFFFFFFFF), stream.epoch, np.uint64(fourth) | node >> np.uint64(32)
    )
    answer = reference(counter, [stream.seed & 0xFFFFFFFF, stream.seed >> 32])
    return np.choose(element % 4, [lane.astype(np.int64) for lane in answer])
