// Rows moved by index.
#pragma once

#include <cstring>

#include "epilogue.h"
#include "kernels.h"

namespace halocast::HALOCAST_ISA {
namespace {

constexpr std::int64_t rows_ahead = 8;

// Starts fetching the row that is needed a few rows from now.
template <class T, class Index>
inline void fetch_ahead(const T* base, std::int64_t stride, const MoveRows<T, Index>& m, std::int64_t k) {
  if (k + rows_ahead >= m.count) return;
  const char* const row = reinterpret_cast<const char*>(base + m.index[k + rows_ahead] * stride);
  const auto bytes = m.dim * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t byte = 0; byte < bytes && byte < 1024; byte += 64) __builtin_prefetch(row + byte);
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
