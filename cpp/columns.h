// Sums over rows that do not depend on the number of threads: blocks of row_block rows, added in order.
#pragma once

#include "kernels.h"
#include "parallel.h"

namespace halocast::HALOCAST_ISA {
namespace {

// T sums cover this many rows before they go into double sums, so that float32 loses little.
constexpr std::int64_t rows_per_flush = 32;

// Accumulators of one block of rows: `vectors` vectors [dim], in T and, after each flush, in double.
template <class T>
class BlockSums {
 public:
  BlockSums(double* workspace, std::int64_t block, std::int64_t dim, int vectors)
      : size_(dim * vectors),
        dim_(dim),
        totals_(workspace + block * size_ * 2),
        sums_(reinterpret_cast<T*>(totals_ + size_)) {
    for (std::int64_t i = 0; i < size_; ++i) {
      totals_[i] = 0;
      sums_[i] = 0;
    }
  }

  T* vector(int which) { return sums_ + which * dim_; }

  void flush() {
    for (std::int64_t i = 0; i < size_; ++i) {
      totals_[i] += static_cast<double>(sums_[i]);
      sums_[i] = 0;
    }
  }

 private:
  std::int64_t size_;
  std::int64_t dim_;
  double* totals_;
  T* sums_;
};

// out[j] (+)= the sum over blocks of vector `which`; nothing if out is null.
template <class T>
void add_blocks(const double* workspace, std::int64_t blocks, std::int64_t dim, int vectors, int which, T* out,
                bool accumulate) {
  if (out == nullptr) return;
  for (std::int64_t j = 0; j < dim; ++j) {
    double total = 0;
    for (std::int64_t block = 0; block < blocks; ++block)
      total += workspace[block * dim * vectors * 2 + which * dim + j];
    out[j] = static_cast<T>(accumulate ? static_cast<double>(out[j]) + total : total);
  }
}

// Runs add(sums, row) for all rows, block by block on threads.
template <class T, class AddRow>
void sum_rows(std::int64_t rows, std::int64_t dim, int vectors, double* workspace, int threads, const AddRow& add) {
  parallel_for(row_blocks(rows), threads, [&](std::int64_t block) {
    BlockSums<T> sums(workspace, block, dim, vectors);
    const std::int64_t last = (block + 1) * row_block < rows ? (block + 1) * row_block : rows;
    for (std::int64_t row = block * row_block; row < last; ++row) {
      add(sums, row);
      if ((row + 1) % rows_per_flush == 0) sums.flush();
    }
    sums.flush();
  });
}

template <class T>
void column_sum(const ColumnSum<T>& c, int threads) {
  sum_rows<T>(c.rows, c.dim, 1, c.workspace, threads, [&](BlockSums<T>& sums, std::int64_t row) {
    const T* const in = c.in + row * c.in_stride;
    T* const sum = sums.vector(0);
#pragma omp simd
    for (std::int64_t j = 0; j < c.dim; ++j) sum[j] += in[j];
  });
  add_blocks(c.workspace, row_blocks(c.rows), c.dim, 1, 0, c.out, c.accumulate);
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
