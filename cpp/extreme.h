// The largest (or smallest) value among the neighbours, column by column and block by block, and its gradient.
//
// Beside the value goes the number of neighbours that have it: the gradient is shared among them evenly, as that of
// torch.scatter_reduce's amax is. So the backward pass needs no neighbour's name, and no sum depends on the order of
// blocks. NaN wins over all numbers and passes no gradient.
#pragma once

#include "balance.h"
#include "kernels.h"
#include "own_row.h"
#include "simd.h"

namespace halocast::HALOCAST_ISA {
namespace {

constexpr std::int64_t extreme_distance = 16;

// Bytes of a row that are fetched ahead; the processor's own prefetcher follows from there.
constexpr std::int64_t extreme_bytes = 1024;

template <class T>
inline std::int64_t fetched_bytes(std::int64_t dim) {
  const auto bytes = dim * static_cast<std::int64_t>(sizeof(T));
  return bytes < extreme_bytes ? bytes : extreme_bytes;
}

// Columns of a row that are done at once, in registers.
template <class T>
constexpr std::int64_t extreme_columns = 4 * lanes<T>;

template <class T, bool Minimum>
void merge_extremes(const ExtremeForward<T>& f, std::int64_t row, std::int64_t column, int count,
                    std::int64_t last_edge) {
  T* const value = f.value + row * f.value_stride + column;
  T* const ties = f.ties + row * f.ties_stride + column;
  T best[extreme_columns<T>];
  T equal[extreme_columns<T>];
  std::memcpy(best, value, static_cast<std::size_t>(count) * sizeof(T));
  std::memcpy(equal, ties, static_cast<std::size_t>(count) * sizeof(T));
  for (std::int64_t edge = f.by_target.begin[row]; edge < f.by_target.end[row]; ++edge) {
    const std::int64_t ahead = edge + extreme_distance < last_edge ? edge + extreme_distance : last_edge;
    if (column == 0) prefetch(f.in + f.by_target.index[ahead] * f.in_stride, fetched_bytes<T>(f.dim));
    const T* const in = f.in + f.by_target.index[edge] * f.in_stride + column;
#pragma omp simd
    for (int j = 0; j < count; ++j) {
      const T x = in[j];
      const bool better = (Minimum ? x < best[j] : x > best[j]) || x != x;
      const T before = x == best[j] ? equal[j] + 1 : equal[j];
      equal[j] = better ? T(1) : before;
      best[j] = better ? x : best[j];
    }
  }
  std::memcpy(value, best, static_cast<std::size_t>(count) * sizeof(T));
  std::memcpy(ties, equal, static_cast<std::size_t>(count) * sizeof(T));
}

template <class T>
void extreme_forward(const ExtremeForward<T>& f, int threads) {
  for_balanced_rows(f.by_target.begin, f.by_target.end, 0, f.by_target.rows, f.dim, threads,
                    [&](std::int64_t first, std::int64_t last, std::int64_t last_edge) {
                      for (std::int64_t row = first; row < last; ++row)
                        for (std::int64_t column = 0; column < f.dim; column += extreme_columns<T>) {
                          const std::int64_t left = f.dim - column;
                          const auto count = static_cast<int>(left < extreme_columns<T> ? left : extreme_columns<T>);
                          if (f.minimum)
                            merge_extremes<T, true>(f, row, column, count, last_edge);
                          else
                            merge_extremes<T, false>(f, row, column, count, last_edge);
                        }
                    });
}

template <class T>
void extreme_backward_row(const ExtremeBackward<T>& b, std::int64_t row, std::int64_t last_edge, OwnRow<T>& own) {
  const T* const in = own.keep(b.in + row * b.in_stride, 0, b.dim);
  T* const grad = b.grad_in + row * b.grad_in_stride;
  if (!b.accumulate) std::memset(grad, 0, static_cast<std::size_t>(b.dim) * sizeof(T));
  for (std::int64_t edge = b.by_source.begin[row]; edge < b.by_source.end[row]; ++edge) {
    const std::int64_t ahead = edge + extreme_distance < last_edge ? edge + extreme_distance : last_edge;
    prefetch(b.value + b.by_source.index[ahead] * b.value_stride, fetched_bytes<T>(b.dim));
    prefetch(b.share + b.by_source.index[ahead] * b.share_stride, fetched_bytes<T>(b.dim));
    const T* const value = b.value + b.by_source.index[edge] * b.value_stride;
    const T* const share = b.share + b.by_source.index[edge] * b.share_stride;
#pragma omp simd
    for (std::int64_t j = 0; j < b.dim; ++j) grad[j] += in[j] == value[j] ? share[j] : T(0);
  }
}

template <class T>
void extreme_backward(const ExtremeBackward<T>& b, int threads) {
  for_balanced_rows(b.by_source.begin, b.by_source.end, 0, b.by_source.rows, 2 * b.dim, threads,
                    [&](std::int64_t first, std::int64_t last, std::int64_t last_edge) {
                      OwnRow<T> own(b.grad_in == b.in ? b.dim : 0);
                      for (std::int64_t row = first; row < last; ++row) extreme_backward_row(b, row, last_edge, own);
                    });
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
