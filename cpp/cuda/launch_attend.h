// Starts the kernels of attention and extremes on a CUDA stream of the current device; nothing waits for them. Knows
// nothing of CUDA's headers.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace halocast::attention {

// Targets whose share of GATv2's gradient of the weight is one sum: fixed, so that no sum depends on the GPU.
constexpr std::int64_t chunk_targets = 32;

// Heads up to this wide fit into the registers of a warp.
constexpr std::int64_t in_place_dim = 256;

// Job: AttendForward, AttendFinish, AttendPack, AttendBackward, ExtremeForward or ExtremeBackward, of float or double,
// with every address one of the device's. stream: a cudaStream_t. The same job gives the same bits on the same kind of
// GPU. AttendBackward: workspace (GATv2 only) has a T for each weight and chunk of targets, and gradients may take the
// place of values only where heads have at most in_place_dim columns. Throws std::runtime_error naming the kernel where
// a launch fails.
template <class Job>
void launch(const Job& job, std::uintptr_t stream);

}  // namespace halocast::attention
