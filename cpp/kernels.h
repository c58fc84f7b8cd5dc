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

// One block of a structure by rows: entries begin[row] <= e < end[row] of index, which names the other end.
struct BlockRows {
  const std::int64_t* begin;
  const std::int64_t* end;
  const std::int32_t* index;
  std::int64_t rows;
};

// What attention reads; see attend.h for the formulas. dim is that of one head; dropout.nodes are those of the targets.
// GAT: source_logit [sources, heads], target_logit [targets, heads] and, if given, edge_logit [entries, heads].
// GATv2 (weight is given): target [targets, heads * dim] and weight [heads * dim].
template <class T>
struct Attention {
  std::int64_t heads;
  std::int64_t dim;
  T slope;
  const T* z;
  std::int64_t z_stride;
  const T* source_logit;
  std::int64_t source_logit_stride;
  const T* target_logit;
  std::int64_t target_logit_stride;
  const T* edge_logit;
  const T* target;
  std::int64_t target_stride;
  const T* weight;
  Dropout dropout;
  const std::int64_t* source_nodes;
};

// Merges a block into maximum and sum [targets, heads] and out [targets, heads * dim].
template <class T>
struct AttendForward {
  Attention<T> attention;
  BlockRows by_target;
  T* maximum;
  T* sum;
  T* out;
  std::int64_t out_stride;
};

// out[i,h,:] /= sum[i,h]; zero where that is zero.
template <class T>
struct AttendFinish {
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t dim;
  const T* sum;
  T* out;
  std::int64_t out_stride;
};

// What a target keeps for the backward pass, in one row.
enum PackedOf { packed_logit, packed_maximum, packed_inverse, packed_product, packed_numbers };

// packed[i] = (target logits | maxima | 1 / sums | products of out and its gradient), [rows, packed_numbers * heads].
template <class T>
struct AttendPack {
  std::int64_t rows;
  std::int64_t heads;
  std::int64_t dim;
  const T* target_logit;
  std::int64_t target_logit_stride;
  const T* maximum;
  const T* sum;
  const T* out;
  std::int64_t out_stride;
  const T* grad;
  std::int64_t grad_stride;
  T* packed;
};

// Gradients of one block. Those of sources are written, or added if accumulate; those of targets and of weight are
// added; those of edge logits are written. Unless accumulate, grad_z may be z itself, and grad_source_logit the
// source_logit. by_source names targets, and entry[e] is the place of its entry e in edge_logit (unread without).
// workspace: see attend_workspace.
template <class T>
struct AttendBackward {
  Attention<T> attention;
  BlockRows by_target;
  BlockRows by_source;
  const std::int64_t* entry;
  const T* packed;
  const T* grad;
  std::int64_t grad_stride;
  bool accumulate;
  T* grad_z;
  std::int64_t grad_z_stride;
  T* grad_source_logit;
  std::int64_t grad_source_logit_stride;
  T* grad_target_logit;
  std::int64_t grad_target_logit_stride;
  T* grad_edge_logit;
  T* grad_target;
  std::int64_t grad_target_stride;
  T* grad_weight;
  double* workspace;
};

// value[i,c] = the extreme of value[i,c] and the block's in[index[e],c]; ties[i,c] counts the neighbours that have it.
template <class T>
struct ExtremeForward {
  BlockRows by_target;
  bool minimum;
  std::int64_t dim;
  const T* in;
  std::int64_t in_stride;
  T* value;
  std::int64_t value_stride;
  T* ties;
  std::int64_t ties_stride;
};

// grad_in[j,c] (+)= the sum of share[i,c] over the entries of j in by_source with in[j,c] == value[i,c]. Unless
// accumulate, grad_in may be in itself.
template <class T>
struct ExtremeBackward {
  BlockRows by_source;
  std::int64_t dim;
  const T* in;
  std::int64_t in_stride;
  const T* value;
  std::int64_t value_stride;
  const T* share;
  std::int64_t share_stride;
  T* grad_in;
  std::int64_t grad_in_stride;
  bool accumulate;
};

// Rows summed as one unit: fixed, so that no sum depends on the number of threads. (Internal linkage: see kernels.cpp.)
constexpr std::int64_t row_block = 1024;

static inline std::int64_t row_blocks(std::int64_t rows) { return (rows + row_block - 1) / row_block; }

// Doubles that the column sums of so many vectors [dim] need: for each block a double and a T accumulator per column.
static inline std::int64_t column_workspace(std::int64_t rows, std::int64_t dim, int vectors) {
  return row_blocks(rows) * dim * vectors * 2;
}

// Heads that attention has at most: what a row's logits take on the stack.
constexpr std::int64_t most_heads = 64;

// Chunks of sources whose gradients of target logits are summed apart: fixed, as row_block is.
constexpr std::int64_t attend_chunks = 8;

// Doubles that AttendBackward needs.
template <class T>
static inline std::int64_t attend_workspace(const AttendBackward<T>& b) {
  const std::int64_t heads = b.attention.heads;
  if (b.attention.weight != nullptr) return column_workspace(b.by_target.rows, heads * b.attention.dim, 1);
  return attend_chunks * b.by_target.rows * heads * static_cast<std::int64_t>(sizeof(T)) / 8 + 1;
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
  void (*attend_forward)(const AttendForward<T>&, int threads);
  void (*attend_finish)(const AttendFinish<T>&, int threads);
  void (*attend_pack)(const AttendPack<T>&, int threads);
  void (*attend_backward)(const AttendBackward<T>&, int threads);
  void (*extreme_forward)(const ExtremeForward<T>&, int threads);
  void (*extreme_backward)(const ExtremeBackward<T>&, int threads);
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
