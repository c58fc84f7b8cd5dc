// Chunks of work on threads: torch's own OpenMP pool where Python handed it over, a small pool of ours elsewhere.
#pragma once

#include <cstdint>

namespace halocast {

// Address of GOMP_parallel in the library that torch loaded, or null to use our own threads.
void attach_openmp(void* gomp_parallel);

// Calls run(context, chunk) for every chunk in [0, chunks), on up to `threads` threads; idle threads take the next
// chunk. `run` must not throw.
void parallel_chunks(std::int64_t chunks, int threads, void (*run)(const void* context, std::int64_t chunk),
                     const void* context);

// The same for a callable. Internal linkage: each instruction set keeps its own copy.
template <class Function>
static inline void parallel_for(std::int64_t chunks, int threads, const Function& function) {
  parallel_chunks(
      chunks, threads, [](const void* context, std::int64_t chunk) { (*static_cast<const Function*>(context))(chunk); },
      &function);
}

}  // namespace halocast
