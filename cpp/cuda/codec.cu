// The kernels, and how many threads they get. Compile without fused multiply-adds, as every implementation of the wire
// format.
#include "launch.h"
#include "rotate.h"
#include "start.h"

namespace halocast::codec {
namespace {

constexpr int block_memory = 48 << 10;  // shared memory that every GPU grants without asking

// The warps after those of the rows write the headers.
template <int lanes, int vector, bool whole>
__global__ void __launch_bounds__(block_threads, 6) pack_kernel(const PackJob job, std::int64_t row_warps) {
  __shared__ __align__(16) std::uint8_t staging[block_warps * warp_staging<lanes>];
  const std::int64_t number = warp_number();
  if (number < row_warps) {
    pack_rows<lanes, vector, whole>(Warp(), job, number * (warp_lanes / lanes),
                                    staging + threadIdx.x / warp_lanes * warp_staging<lanes>);
  } else {
    const std::int64_t message = (number - row_warps) * warp_lanes + threadIdx.x % warp_lanes;
    if (message < job.messages) write_header(job, message);
  }
}

template <int lanes, int vector, bool adding>
__global__ void __launch_bounds__(block_threads) unpack_kernel(const UnpackJob job) {
  const auto thread = static_cast<int>(threadIdx.x);
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.x) * (block_threads / lanes);
  unpack_row<lanes, vector, adding>(job, first_row + thread / lanes, thread % lanes);
}

extern __shared__ __align__(16) std::uint8_t rows_memory[];

__device__ __forceinline__ RotatedMemory memory_of_warp(std::int64_t dim) {
  const auto row_dim = static_cast<int>(dim);
  return rotated_memory(rows_memory + threadIdx.x / warp_lanes * rotated_bytes(row_dim), row_dim);
}

__global__ void __launch_bounds__(block_threads) pack_rotated_kernel(const PackJob job) {
  const std::int64_t number = warp_number();
  if (number < job.pack.records.count) pack_rotated(Warp(), job, number, memory_of_warp(job.pack.records.dim));
}

__global__ void __launch_bounds__(block_threads) unpack_rotated_kernel(const UnpackJob job) {
  const std::int64_t number = warp_number();
  if (number < job.unpack.records.count) unpack_rotated(Warp(), job, number, memory_of_warp(job.unpack.records.dim));
}

// The kernels count the bits of a row in 32 bits.
void check_dim(const char* kernel, std::int64_t dim) {
  if (dim < 1 || dim > longest_dim)
    throw std::runtime_error(std::string("CUDA kernel ") + kernel + ": rows have 1 to " + std::to_string(longest_dim) +
                             " values on a GPU, these have " + std::to_string(dim));
}

// Warps and shared memory of a block that has one row of the rotated codec a warp.
struct RotatedBlock {
  int warps, bytes;
};

RotatedBlock rotated_block(const char* kernel, std::int64_t dim) {
  if (dim > shared_rotated_dim)
    throw std::runtime_error(std::string("CUDA kernel ") + kernel + ": rows of the rotated codec have at most " +
                             std::to_string(shared_rotated_dim) + " values on a GPU, these have " +
                             std::to_string(dim));
  const int bytes = rotated_bytes(static_cast<int>(dim));
  const int fitting = block_memory / bytes;
  const int warps = fitting < block_warps ? fitting : block_warps;
  return {warps, warps * bytes};
}

}  // namespace

void launch(const PackJob& job, std::uintptr_t stream) {
  const Records& records = job.pack.records;
  check_dim("pack", records.dim);
  const bool some_rotated = records.rounding == Rounding::rotated;
  const RotatedBlock rotated = some_rotated ? rotated_block("pack_rotated", records.dim) : RotatedBlock{};
  with_shape(pack_shape(job.pack), [&](auto fixed) {
    using Fixed = decltype(fixed);
    const std::int64_t row_warps = blocks_for(records.count, warp_lanes / Fixed::lanes);
    const std::int64_t warps = row_warps + blocks_for(job.messages, warp_lanes);
    launch_named("pack", blocks_for(warps, block_warps), stream, [&](unsigned blocks, cudaStream_t on) {
      pack_kernel<Fixed::lanes, Fixed::vector, Fixed::whole><<<blocks, block_threads, 0, on>>>(job, row_warps);
    });
  });
  if (!some_rotated) return;
  launch_named("pack_rotated", blocks_for(records.count, rotated.warps), stream, [&](unsigned blocks, cudaStream_t on) {
    pack_rotated_kernel<<<blocks, rotated.warps * warp_lanes, rotated.bytes, on>>>(job);
  });
}

void launch(const UnpackJob& job, std::uintptr_t stream) {
  const Records& records = job.unpack.records;
  check_dim("unpack", records.dim);
  const bool some_rotated = records.rounding == Rounding::rotated;
  const RotatedBlock rotated = some_rotated ? rotated_block("unpack_rotated", records.dim) : RotatedBlock{};
  with_shape(unpack_shape(job.unpack), [&](auto fixed) {
    using Fixed = decltype(fixed);
    launch_named("unpack", blocks_for(records.count, block_threads / Fixed::lanes), stream,
                 [&](unsigned blocks, cudaStream_t on) {
                   if (job.unpack.accumulate)
                     unpack_kernel<Fixed::lanes, Fixed::vector, true><<<blocks, block_threads, 0, on>>>(job);
                   else
                     unpack_kernel<Fixed::lanes, Fixed::vector, false><<<blocks, block_threads, 0, on>>>(job);
                 });
  });
  if (!some_rotated) return;
  launch_named("unpack_rotated", blocks_for(records.count, rotated.warps), stream,
               [&](unsigned blocks, cudaStream_t on) {
                 unpack_rotated_kernel<<<blocks, rotated.warps * warp_lanes, rotated.bytes, on>>>(job);
               });
}

}  // namespace halocast::codec
