// Attention over the neighbours of each row, block by block, without a number per edge and head in memory.
//
// Logits: GAT (P. Veličković et al., Graph Attention Networks, ICLR 2018, eq. 3) l_ij = leaky(el_j + er_i), with the
// vector a split into its source and target halves, and an edge's own half-logit added where given; GATv2 (S. Brody et
// al., How Attentive are Graph Attention Networks?, ICLR 2022, eq. 7) l_ij = a · leaky(zs_j + zt_i).
// Their softmax over all neighbours, whichever part they live in, merges one block after the other (H. Mostafa,
// Sequential Aggregation and Rematerialization, MLSys 2022, arXiv:2111.06483, on sequential aggregation of attention;
// M. Milakov and N. Gimelshein, Online normalizer calculation for softmax, 2018, algorithm 3): with m the largest logit
// so far, s = Σ e^(l − m) and o = Σ e^(l − m) z,
//   m' = max(m, max of the block's l), s' = s e^(m − m') + Σ e^(l − m'), o' = o e^(m − m') + Σ e^(l − m') z.
// A row without neighbours, or whose logits are all −∞, has s = 0 and ends as zeros. Dropout multiplies e^(l − m) in o
// and not in s: it comes after the normalisation, as in torch_geometric.
#pragma once

#include <limits>

#include "attend_span.h"
#include "balance.h"
#include "epilogue.h"
#include "exponential.h"
#include "kernels.h"

namespace halocast::HALOCAST_ISA {
namespace {

// Largest logits of a span, sums and factors e^(m − m'); logits become e^(l − m').
template <class T>
void merge_logits(std::int64_t heads, int count, T* maximum, T* sum, T* factor, const Span<T>& logit) {
  for (std::int64_t head = 0; head < heads; ++head) {
    T* const l = logit[head];
    Vector<T> top = load(l);
    for (int edge = lanes<T>; edge < count; edge += lanes<T>) {
      const Vector<T> x = load(l + edge);
      top = x > top ? x : top;
    }
    T tops[lanes<T>];
    store(tops, top);
    T now = maximum[head];
    for (const T one : tops) now = one > now ? one : now;
    const T shift = now == -std::numeric_limits<T>::infinity() ? T(0) : now;
    Vector<T> total{};
    for (int edge = 0; edge < count; edge += lanes<T>) {
      const Vector<T> p = exp_nonpositive(load(l + edge) - shift);
      store(l + edge, p);
      total += p;
    }
    factor[head] = maximum[head] == now ? T(1) : exp_nonpositive(maximum[head] - shift);
    sum[head] = sum[head] * factor[head] + sum_of_lanes<T>(total);
    maximum[head] = now;
  }
}

// l = leaky(x + base + edge's own), where x are already in `logit`: half-logits of each edge's other end.
template <class T>
inline void finish_gat_logits(const Attention<T>& a, const T* base, const std::int64_t* entry, std::int64_t first,
                              int count, const Span<T>& logit) {
  SpanStorage<T, 1> storage;
  const Span<T> own(storage, 0, a.heads);
  if (a.edge_logit != nullptr) {
    for (int edge = 0; edge < count; ++edge) {
      const std::int64_t place = entry != nullptr ? entry[first + edge] : first + edge;
      for (std::int64_t head = 0; head < a.heads; ++head) own[head][edge] = a.edge_logit[place * a.heads + head];
    }
    pad(own, a.heads, count, T(0));
  }
  for (std::int64_t head = 0; head < a.heads; ++head)
    for (int edge = 0; edge < count; edge += lanes<T>) {
      Vector<T> x = load(&logit[head][edge]) + base[head];
      if (a.edge_logit != nullptr) x += load(&own[head][edge]);
      store(&logit[head][edge], leaky(x, a.slope));
    }
}

// GATv2's logits of a row against the rows at an edge's other end.
template <class T>
inline void gatv2_logits(const Attention<T>& a, const HeadColumns<T>& columns, const T* own, const T* const* rows,
                         int count, const Span<T>& logit) {
  sum_over_columns(
      columns, count, logit, [&](int edge, std::int64_t offset, const auto& load_at) __attribute__((always_inline)) {
        return load_at(a.weight + offset) * leaky(load_at(own + offset) + load_at(rows[edge] + offset), a.slope);
      });
}

template <class T>
void scale_heads(const HeadColumns<T>& columns, const T* factor, T* row) {
  for (std::int64_t head = 0; head < columns.heads; ++head) {
    if (factor[head] == T(1)) continue;
    T* const to = row + head * columns.dim;
#pragma omp simd
    for (std::int64_t j = 0; j < columns.dim; ++j) to[j] *= factor[head];
  }
}

// Rows of a matrix that a span's edges name; behind the last edge there is nothing.
template <class T>
inline void find_rows(const T* matrix, std::int64_t stride, const std::int32_t* index, int count, const T** rows) {
  for (int edge = 0; edge < count; ++edge) rows[edge] = matrix + index[edge] * stride;
}

template <class T>
void attend_row(const AttendForward<T>& f, const HeadColumns<T>& columns, std::int64_t row, std::int64_t last_edge) {
  const Attention<T>& a = f.attention;
  const std::int32_t* const index = f.by_target.index;
  const std::int64_t end = f.by_target.end[row];
  const auto bytes = a.heads * a.dim * static_cast<std::int64_t>(sizeof(T));
  SpanStorage<T, 2> storage;
  const Span<T> weight(storage, 0, a.heads);
  const Span<T> kept(storage, 1, a.heads);
  T factor[most_heads];
  const T* rows[span_edges];
  for (std::int64_t first = f.by_target.begin[row]; first < end; first += span_edges) {
    const int count = static_cast<int>(end - first < span_edges ? end - first : span_edges);
    const auto fetch = [&](int edge) __attribute__((always_inline)) {
      const std::int64_t ahead =
          first + edge + attend_distance < last_edge ? first + edge + attend_distance : last_edge;
      prefetch(a.z + index[ahead] * a.z_stride, bytes);
      if (a.source_logit != nullptr) __builtin_prefetch(a.source_logit + index[ahead] * a.source_logit_stride);
    };
    find_rows(a.z, a.z_stride, index + first, count, rows);
    if (a.weight != nullptr) {
      gatv2_logits(a, columns, a.target + row * a.target_stride, rows, count, weight);
    } else {
      gather_heads(a.source_logit, a.source_logit_stride, index + first, count, a.heads, weight);
      finish_gat_logits(a, a.target_logit + row * a.target_logit_stride, nullptr, first, count, weight);
    }
    pad(weight, a.heads, count, -std::numeric_limits<T>::infinity());
    merge_logits(a.heads, count, f.maximum + row * a.heads, f.sum + row * a.heads, factor, weight);
    if (a.dropout.threshold != 0) {
      dropout_factors(
          a.dropout, a.heads, count, [&](int) { return a.dropout.nodes[row]; },
          [&](int edge) { return a.source_nodes[index[first + edge]]; }, kept);
      for (std::int64_t head = 0; head < a.heads; ++head)
        for (int edge = 0; edge < count; ++edge) weight[head][edge] *= kept[head][edge];
    }
    T* const out = f.out + row * f.out_stride;
    scale_heads(columns, factor, out);
    add_weighted_rows(columns, rows, count, weight, out, fetch);
  }
}

template <class T>
void attend_forward(const AttendForward<T>& f, int threads) {
  const Attention<T>& a = f.attention;
  const HeadColumns<T> columns(a.heads, a.dim);
  for_balanced_rows(f.by_target.begin, f.by_target.end, 0, f.by_target.rows, a.heads * a.dim, threads,
                    [&](std::int64_t first, std::int64_t last, std::int64_t last_edge) {
                      for (std::int64_t row = first; row < last; ++row) attend_row(f, columns, row, last_edge);
                    });
}

template <class T>
void attend_finish(const AttendFinish<T>& f, int threads) {
  for_rows(f.rows, f.heads * f.dim, threads, [&](std::int64_t row) {
    for (std::int64_t head = 0; head < f.heads; ++head) {
      const T sum = f.sum[row * f.heads + head];
      T* const out = f.out + row * f.out_stride + head * f.dim;
      const T factor = sum == 0 ? T(0) : 1 / sum;
#pragma omp simd
      for (std::int64_t j = 0; j < f.dim; ++j) out[j] *= factor;
    }
  });
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
