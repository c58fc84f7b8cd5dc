// Rows moved by index.
#pragma once

#include <cstring>

#include "epilogue.h"
#include "kernels.h"
#include "simd.h"

namespace halocast::HALOCAST_ISA {
namespace {

constexpr std::int64_t rows_ahead = 8;

// Starts fetching the row that is needed a few rows from now.
template <class T, class Index>
inline __attribute__((always_inline)) void fetch_ahead(const T* base, std::int64_t stride, const MoveRows<T, Index>& m,
                                                       std::int64_t k) {
  constexpr std::int64_t most = 1024;  // the processor's own prefetcher follows from there
  const auto bytes = m.dim * static_cast<std::int64_t>(sizeof(T));
  if (k + rows_ahead < m.count) prefetch(base + m.index[k + rows_ahead] * stride, bytes < most ? bytes : most);
}

template <class T, class Index>
void gather_rows(const MoveRows<T, Index>& m, int threads) {
  for_rows(m.count, m.dim, threads, [&](std::int64_t k) {
    fetch_ahead(m.in, m.in_stride, m, k);
    std::memcpy(m.out + k * m.out_stride, m.in + m.index[k] * m.in_stride, static_cast<std::size_t>(m.dim) * sizeof(T));
  });
}

template <class T, class Index>
void scatter_add_rows(const MoveRows<T, Index>& m, int threads) {
  for_rows(m.count, m.dim, threads, [&](std::int64_t k) {
    fetch_ahead(m.out, m.out_stride, m, k);
    const T* const in = m.in + k * m.in_stride;
    T* const out = m.out + m.index[k] * m.out_stride;
#pragma omp simd
    for (std::int64_t j = 0; j < m.dim; ++j) out[j] += in[j];
  });
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
