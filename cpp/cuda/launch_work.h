// Defines launch of launch_attend.h, for the CUDA compiler only.
#pragma once

#include "attend_work.h"
#include "launch_attend.h"
#include "start.h"

namespace halocast::attention {

template <class Work>
__global__ void __launch_bounds__(codec::block_threads) run_warps(const Work work, std::int64_t warps) {
  const std::int64_t number = codec::warp_number();
  if (number < warps) work(Warp(), number);
}

template <class Job>
void launch(const Job& job, std::uintptr_t stream) {
  start_all(job, [&](const auto& work) {
    const std::int64_t warps = work.warps();
    codec::launch_named(
        work.name, codec::blocks_for(warps, codec::block_warps), stream,
        [&](unsigned blocks, cudaStream_t on) { run_warps<<<blocks, codec::block_threads, 0, on>>>(work, warps); });
  });
}

}  // namespace halocast::attention
