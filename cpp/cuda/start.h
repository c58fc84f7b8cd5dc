// Starting kernels whose warps each have a number, for the CUDA compiler only.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "lanes.h"

namespace halocast::codec {
namespace {

constexpr int block_warps = 4;
constexpr int block_threads = block_warps * warp_lanes;

__device__ __forceinline__ std::int64_t warp_number() {
  return static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / warp_lanes) + threadIdx.x / warp_lanes;
}

std::int64_t blocks_for(std::int64_t items, std::int64_t block_items) {
  return (items + block_items - 1) / block_items;
}

// Calls start(blocks, stream), unless there is nothing to do, and reports what CUDA has to say.
template <class Start>
void launch_named(const char* kernel, std::int64_t blocks, std::uintptr_t stream, const Start& start) {
  if (blocks == 0) return;
  start(static_cast<unsigned>(blocks), reinterpret_cast<cudaStream_t>(stream));
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA kernel ") + kernel + ": " + cudaGetErrorString(error));
}

}  // namespace
}  // namespace halocast::codec
