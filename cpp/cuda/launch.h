// Starts the kernels on a CUDA stream of the current device; nothing waits for them. Knows nothing of CUDA's headers.
#pragma once

#include <cstdint>

#include "jobs.h"

namespace halocast::codec {

// stream: a cudaStream_t. Throws std::runtime_error naming the kernel where a launch fails, and for rows of the rotated
// codec that are too long.
void launch(const PackJob& job, std::uintptr_t stream);
void launch(const UnpackJob& job, std::uintptr_t stream);

}  // namespace halocast::codec
