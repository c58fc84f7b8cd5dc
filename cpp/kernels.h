// What the kernels take: plain pointers and sizes. One table of them for each instruction set.
//
// Matrices have unit stride along dim and a row stride in elements. T is float or double. A null pointer leaves a step
// out.
#pragma once

#include <cstdint>

namespace halocast {

// out[i,:] (+)= row_scale[i] * sum over begin[i] <= e < end[i] of value[e] * column_scale[index[e]] * in[index[e],:]
template <class T>
struct Aggregate {
  const std::int64_t* begin;
  const std::int64_t* end;
  const std::int32_t* index;
  const T* value;
  const T* row_scale;
  const T* column_scale;
  const T* in;
  std::int64_t in_stride;
  T* out;
  std::int64_t out_stride;
  std::int64_t first_row;
  std::int64_t last_row;
  std::int64_t dim;
  bool accumulate;
};

// Key and shared counter words of one stream of random numbers; see philox.h.
struct RandomStream {
  std::uint64_t seed;
  std::uint32_t epoch;
  std::uint32_t tag;
};

// An element is kept if its random word is >= threshold; a threshold of 0 means no dropout.
struct Dropout {
  std::uint64_t threshold;
  double scale;
  RandomStream stream;
  const std::int64_t* nodes;
};

// out = dropout(relu(norm(z + bias))); normalises if gamma is given, and then writes mean and rstd.
template <class T>
struct EpilogueForward {
  const T* z;
  std::int64_t z_stride;
  T* out;
  std::int64_t out_stride;
  std::int64_t rows;
  std::int64_t dim;
  const T* bias;
  const T* gamma;
  const T* beta;
  T* mean;
  T* rstd;
  T eps;
  bool relu;
  Dropout dropout;
};

// grad of out -> grad of z, in place. out is given with relu, z with normalisation. workspace: see column_workspace.
template <class T>
struct EpilogueBackward {
  T* grad;
  std::int64_t grad_stride;
  const T* out;
  std::int64_t out_stride;
  const T* z;
  std::int64_t z_stride;
  std::int64_t rows;
  std::int64_t dim;
  const T* bias;
  const T* gamma;
  const T* mean;
  const T* rstd;
  Dropout dropout;
  T* grad_bias;
  T* grad_gamma;
  T* grad_beta;
  bool accumulate;
  double* workspace;
};

template <class T>
struct ColumnSum {
  const T* in;
  std::int64_t in_stride;
  std::int64_t rows;
  std::int64_t dim;
  T* out;
  bool accumulate;
  double* workspace;
};

// gather: out[k,:] = in[index[k],:]; scatter: out[index[k],:] += in[k,:]
template <class T, class Index>
struct MoveRows {
  const T* in;
  std::int64_t in_stride;
  const Index* index;
  std::int64_t count;
  std::int64_t dim;
  T* out;
  std::int64_t out_stride;
};

// Loss of the listed rows, and its gradient times scale in grad; grad may be logits. Rows not listed become zero.
// Target is int64 [total_rows] (class of each row) or uint8 [total_rows, classes] (multi-label).
// losses: one double for each block of row_block listed rows. listed: total_rows bytes, zeroed by the caller.
template <class T, class Target>
struct Loss {
  const T* logits;
  std::int64_t logits_stride;
  const Target* target;
  const std::int64_t* rows;
  std::int64_t count;
  std::int64_t total_rows;
  std::int64_t classes;
  T* grad;
  std::int64_t grad_stride;
  T scale;
  double* losses;
  std::uint8_t* listed;
};

// Rows summed as one unit: fixed, so that no sum depends on the number of threads. (Internal linkage: see kernels.cpp.)
constexpr std::int64_t row_block = 1024;

static inline std::int64_t row_blocks(std::int64_t rows) { return (rows + row_block - 1) / row_block; }

// Doubles that the column sums of so many vectors [dim] need: for each block a double and a T accumulator per column.
static inline std::int64_t column_workspace(std::int64_t rows, std::int64_t dim, int vectors) {
  return row_blocks(rows) * dim * vectors * 2;
}

template <class T>
struct TypedKernels {
  void (*aggregate)(const Aggregate<T>&, int threads);
  void (*epilogue_forward)(const EpilogueForward<T>&, int threads);
  void (*epilogue_backward)(const EpilogueBackward<T>&, int threads);
  void (*column_sum)(const ColumnSum<T>&, int threads);
  void (*gather_rows32)(const MoveRows<T, std::int32_t>&, int threads);
  void (*gather_rows64)(const MoveRows<T, std::int64_t>&, int threads);
  void (*scatter_add_rows32)(const MoveRows<T, std::int32_t>&, int threads);
  void (*scatter_add_rows64)(const MoveRows<T, std::int64_t>&, int threads);
  // Return the first listed row whose target is not a class, or -1; the gradient is then unspecified.
  std::int64_t (*cross_entropy)(const Loss<T, std::int64_t>&, int threads);
  void (*bce)(const Loss<T, std::uint8_t>&, int threads);
};

struct KernelTable {
  TypedKernels<float> f32;
  TypedKernels<double> f64;
  void (*philox)(const RandomStream&, const std::int64_t* nodes, std::int64_t rows, std::int64_t dim, std::int64_t* out,
                 int threads);

  template <class T>
  const TypedKernels<T>& of() const {
    if constexpr (sizeof(T) == 4)
      return f32;
    else
      return f64;
  }
};

namespace portable {
const KernelTable* table();
}
namespace avx2 {
const KernelTable* table();
}
namespace avx512 {
const KernelTable* table();
}

}  // namespace halocast
