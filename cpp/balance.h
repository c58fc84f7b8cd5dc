// Rows of a sparse structure dealt out in chunks of about equal work.
#pragma once

#include "parallel.h"

namespace halocast::HALOCAST_ISA {
namespace {

// Rows cost this many edges on top of their own: start-up, scaling and storing.
constexpr std::int64_t row_cost = 4;

constexpr std::int64_t min_chunk_floats = 1 << 15;
constexpr std::int64_t chunks_per_thread = 32;

// First row at which the work before it (edges, and row_cost for each row) reaches `work`. If begin does not ascend,
// chunks are less even but still cover each row once: the search takes the same path for the same rows whatever `work`
// is.
inline std::int64_t row_at(const std::int64_t* begin, std::int64_t first_row, std::int64_t last_row,
                           std::int64_t work) {
  std::int64_t low = first_row;
  std::int64_t high = last_row;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (begin[middle] - begin[first_row] + (middle - first_row) * row_cost < work)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Edges, and row_cost for each row. (That of the last row's own edges is left out: begin tells nothing of it.)
inline std::int64_t work_of_rows(const std::int64_t* begin, std::int64_t first_row, std::int64_t last_row) {
  return begin[last_row - 1] - begin[first_row] + (last_row - first_row) * row_cost;
}

// Calls run(chunk, first, last, last_edge) for so many chunks of rows; last_edge is the last edge that may be looked
// ahead to, -1 if there is none.
template <class Run>
void for_row_chunks(const std::int64_t* begin, const std::int64_t* end, std::int64_t first_row, std::int64_t last_row,
                    std::int64_t chunks, int threads, const Run& run) {
  const std::int64_t work = work_of_rows(begin, first_row, last_row);
  const auto boundary = [&](std::int64_t chunk) {
    if (chunk == 0) return first_row;
    return chunk == chunks ? last_row : row_at(begin, first_row, last_row, work / chunks * chunk);
  };
  parallel_for(chunks, threads, [&](std::int64_t chunk) {
    const std::int64_t first = boundary(chunk);
    const std::int64_t last = boundary(chunk + 1);
    std::int64_t last_edge = -1;
    for (std::int64_t row = last - 1; row >= first && last_edge < 0; --row)
      if (end[row] > begin[row]) last_edge = end[row] - 1;
    run(chunk, first, last, last_edge);
  });
}

// Calls run(first, last, last_edge) for chunks of rows, as many as the work and the threads ask for. dim: elements that
// are read for each edge.
template <class Run>
void for_balanced_rows(const std::int64_t* begin, const std::int64_t* end, std::int64_t first_row,
                       std::int64_t last_row, std::int64_t dim, int threads, const Run& run) {
  const std::int64_t rows = last_row - first_row;
  if (rows <= 0) return;
  std::int64_t chunks = threads > 1 ? work_of_rows(begin, first_row, last_row) * dim / min_chunk_floats + 1 : 1;
  if (chunks > threads * chunks_per_thread) chunks = threads * chunks_per_thread;
  if (chunks > rows) chunks = rows;
  if (chunks < 1) chunks = 1;
  for_row_chunks(begin, end, first_row, last_row, chunks, threads,
                 [&](std::int64_t, std::int64_t first, std::int64_t last, std::int64_t last_edge) {
                   run(first, last, last_edge);
                 });
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
