// The backward pass of attention, over one block that was fetched again.
//
// No logit was kept: they are made again ("attention-matrix rematerialization" of H. Mostafa, MLSys 2022, abstract),
// and the softmax is differentiated by hand. With a_ij = e^(l_ij − m_i) / s_i, M_ij the factor of dropout, e_i the
// gradient of the output o_i = Σ_j a_ij M_ij z_j and x_ij what leaky took:
//   d z_j += a_ij M_ij e_i;  d l_ij = a_ij (M_ij e_i · z_j − e_i · o_i)
//   GAT: d el_j, d er_i, d ee_ij += d l_ij leaky'(x_ij)
//   GATv2: d zs_j, d zt_i += d l_ij a leaky'(x_ij);  d a += d l_ij leaky(x_ij), per column
// The walk is over sources, whose gradients then stay in registers, with two rows read for each edge of GATv2 and one
// of GAT. What GAT's targets get is a number per head: each of attend_chunks chunks of sources adds it up apart, and
// the chunks are added in order. GATv2's targets get a row: a walk over targets, before that over sources.
//
// A source's walk reads its own row alone of all sources, so its gradient may be written over that row, kept meanwhile.
#pragma once

#include "attend.h"
#include "columns.h"
#include "own_row.h"

namespace halocast::HALOCAST_ISA {
namespace {

template <class T>
void attend_pack(const AttendPack<T>& p, int threads) {
  for_rows(p.rows, p.heads * p.dim, threads, [&](std::int64_t row) {
    T* const to = p.packed + row * packed_numbers * p.heads;
    for (std::int64_t head = 0; head < p.heads; ++head) {
      const T maximum = p.maximum[row * p.heads + head];
      const T sum = p.sum[row * p.heads + head];
      const T* const out = p.out + row * p.out_stride + head * p.dim;
      const T* const grad = p.grad + row * p.grad_stride + head * p.dim;
      T product = 0;
#pragma omp simd reduction(+ : product)
      for (std::int64_t j = 0; j < p.dim; ++j) product += out[j] * grad[j];
      to[packed_logit * p.heads + head] =
          p.target_logit != nullptr ? p.target_logit[row * p.target_logit_stride + head] : T(0);
      to[packed_maximum * p.heads + head] = maximum == -std::numeric_limits<T>::infinity() ? T(0) : maximum;
      to[packed_inverse * p.heads + head] = sum == 0 ? T(0) : 1 / sum;
      to[packed_product * p.heads + head] = product;
    }
  });
}

// Numbers of one span, head by head.
template <class T>
struct BackwardSpan {
  explicit BackwardSpan(std::int64_t heads)
      : logit(storage, 0, heads),
        weight(storage, 1, heads),
        maximum(storage, 2, heads),
        inverse(storage, 3, heads),
        product(storage, 4, heads),
        dots(storage, 5, heads),
        kept(storage, 6, heads) {}

  SpanStorage<T, 7> storage;
  Span<T> logit;    // l, then d x of GAT, d l of GATv2
  Span<T> weight;   // a M
  Span<T> maximum;  // of each edge's target
  Span<T> inverse;
  Span<T> product;
  Span<T> dots;  // e_i · z_j
  Span<T> kept;  // M
};

template <class T>
inline void dot_rows(const HeadColumns<T>& columns, const T* own, const T* const* rows, int count, const Span<T>& to) {
  sum_over_columns(columns, count, to,
                   [&](int edge, std::int64_t offset, const auto& load_at)
                       __attribute__((always_inline)) { return load_at(own + offset) * load_at(rows[edge] + offset); });
}

// From l, m, 1 / s, e · o and e · z to a M and d l (times leaky' if Gat).
template <bool Gat, class T>
inline void differentiate(const Attention<T>& a, int count, BackwardSpan<T>& s) {
  for (std::int64_t head = 0; head < a.heads; ++head)
    for (int edge = 0; edge < count; edge += lanes<T>) {
      const Vector<T> l = load(&s.logit[head][edge]);
      const Vector<T> difference = l - load(&s.maximum[head][edge]);
      const Vector<T> share =
          exp_nonpositive(difference > Vector<T>{} ? Vector<T>{} : difference) * load(&s.inverse[head][edge]);
      Vector<T> weight = share;
      Vector<T> dot = load(&s.dots[head][edge]);
      if (a.dropout.threshold != 0) {
        const Vector<T> kept = load(&s.kept[head][edge]);
        weight *= kept;
        dot *= kept;
      }
      Vector<T> slope = share * (dot - load(&s.product[head][edge]));
      if constexpr (Gat) slope *= leaky_derivative(l, a.slope);  // l has the sign of x
      store(&s.weight[head][edge], weight);
      store(&s.logit[head][edge], slope);
    }
}

// A span of a source's edges: gather what the targets keep.
template <class T>
inline void gather_packed(const AttendBackward<T>& b, const std::int32_t* index, int count, BackwardSpan<T>& s) {
  const std::int64_t heads = b.attention.heads;
  const std::int64_t stride = packed_numbers * heads;
  gather_heads(b.packed + packed_maximum * heads, stride, index, count, heads, s.maximum);
  gather_heads(b.packed + packed_inverse * heads, stride, index, count, heads, s.inverse);
  gather_heads(b.packed + packed_product * heads, stride, index, count, heads, s.product);
  pad(s.maximum, heads, count, T(0));
  pad(s.inverse, heads, count, T(0));
  pad(s.product, heads, count, T(0));
}

// GATv2's rows of gradients, on some registers: with d = d l leaky'(x),
// scaled += Σ d, and other += Σ weight · others[edge] (Source) or Σ d x (target).
template <class T, int Vectors, bool Tail, bool Source, class Fetch>
void add_gatv2(const Slice* slices, const T* own, const T* const* rows, const T* const* others, int count, T slope,
               const BackwardSpan<T>& s, const T* weight, T* to, T* other, const Fetch& fetch) {
  Vector<T> scaled[Vectors] = {};
  Vector<T> plain[Vectors] = {};
  Vector<T> mine[Vectors];
  std::int64_t offsets[Vectors];
  const T* slopes[Vectors];
  const auto load_at = [&](const T* from, int v) __attribute__((always_inline)) {
    return Tail ? load_partial(from + offsets[v], slices[v].count) : load(from + offsets[v]);
  };
  const auto add_to = [&](T* to_row, int v, Vector<T> x) {
    if constexpr (Tail)
      store_partial(to_row + offsets[v], load_at(to_row, v) + x, slices[v].count);
    else
      store(to_row + offsets[v], load_at(to_row, v) + x);
  };
  for (int v = 0; v < Vectors; ++v) {
    offsets[v] = Tail ? slices[v].offset : slices[0].offset + v * lanes<T>;
    slopes[v] = s.logit[slices[v].head];
    mine[v] = load_at(own, v);
  }
  const std::int64_t to_weights = s.weight[0] - s.logit[0];
  for (int edge = 0; edge < count; ++edge) {
    if (slices->offset == 0) fetch(edge);
    for (int v = 0; v < Vectors; ++v) {
      const Vector<T> x = mine[v] + load_at(rows[edge], v);
      const Vector<T> d = leaky_derivative(x, slope) * slopes[v][edge];
      scaled[v] += d;
      if constexpr (Source)
        plain[v] += load_at(others[edge], v) * slopes[v][to_weights + edge];
      else
        plain[v] += d * x;
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    add_to(to, v, scaled[v] * load_at(weight, v));
    add_to(other, v, plain[v]);
  }
}

template <bool Source, class T, class Fetch>
inline void add_gatv2_rows(const AttendBackward<T>& b, const HeadColumns<T>& columns, const T* own,
                           const T* const* rows, const T* const* others, int count, const BackwardSpan<T>& s, T* to,
                           T* other, const Fetch& fetch) {
  constexpr int most = max_accumulators / 2;
  const Attention<T>& a = b.attention;
  for_slice_blocks<most>(static_cast<std::int64_t>(columns.slices.size()), [&](std::int64_t done, auto vectors) {
    constexpr int count_of_vectors = decltype(vectors)::value;
    const Slice* const slices = &columns.slices[done];
    if (columns.tail != 0)
      add_gatv2<T, count_of_vectors, true, Source>(slices, own, rows, others, count, a.slope, s, a.weight, to, other,
                                                   fetch);
    else
      add_gatv2<T, count_of_vectors, false, Source>(slices, own, rows, others, count, a.slope, s, a.weight, to, other,
                                                    fetch);
  });
}

// What a walk over sources reads of the targets of one span.
template <class T>
struct TargetRows {
  const T* grads[span_edges];
  const T* rows[span_edges];  // GATv2's
};

// A source: its row of values and of half-logits (GAT's), or what was kept of them.
template <class T>
struct Source {
  std::int64_t row;
  const T* z;
  const T* logit;
};

// From a span of a source's edges to a M and d l (GAT: d x).
template <bool Gat, class T>
void differentiate_source(const AttendBackward<T>& b, const HeadColumns<T>& columns, const Source<T>& source,
                          std::int64_t first, int count, TargetRows<T>& targets, BackwardSpan<T>& s) {
  const Attention<T>& a = b.attention;
  const std::int32_t* const index = b.by_source.index + first;
  find_rows(b.grad, b.grad_stride, index, count, targets.grads);
  gather_packed(b, index, count, s);
  if constexpr (Gat) {
    gather_heads(b.packed, packed_numbers * a.heads, index, count, a.heads, s.logit);
    finish_gat_logits(a, source.logit, b.entry, first, count, s.logit);
  } else {
    find_rows(a.target, a.target_stride, index, count, targets.rows);
    gatv2_logits(a, columns, source.z, targets.rows, count, s.logit);
  }
  pad(s.logit, a.heads, count, -std::numeric_limits<T>::infinity());
  dot_rows(columns, source.z, targets.grads, count, s.dots);
  if (a.dropout.threshold != 0)
    dropout_factors(
        a.dropout, a.heads, count, [&](int edge) { return a.dropout.nodes[index[edge]]; },
        [&](int) { return a.source_nodes[source.row]; }, s.kept);
  differentiate<Gat>(a, count, s);
}

// GAT's d x of a span, to the half-logits: of the source, of the targets (the chunk's own sums) and of the edges.
template <class T>
void add_half_logits(const AttendBackward<T>& b, std::int64_t first, int count, const BackwardSpan<T>& s,
                     T* grad_source, T* grad_target) {
  const std::int64_t heads = b.attention.heads;
  const std::int32_t* const index = b.by_source.index + first;
  for (std::int64_t head = 0; head < heads; ++head) {
    Vector<T> total{};
    for (int edge = 0; edge < count; edge += lanes<T>) total += load(&s.logit[head][edge]);
    grad_source[head] += sum_of_lanes<T>(total);
  }
  for (int edge = 0; edge < count; ++edge)
    for (std::int64_t head = 0; head < heads; ++head) grad_target[index[edge] * heads + head] += s.logit[head][edge];
  if (b.grad_edge_logit == nullptr) return;
  for (int edge = 0; edge < count; ++edge)
    for (std::int64_t head = 0; head < heads; ++head)
      b.grad_edge_logit[b.entry[first + edge] * heads + head] = s.logit[head][edge];
}

// Elements of a source that its gradients would be written over.
template <class T>
std::int64_t kept_of_source(const AttendBackward<T>& b) {
  const Attention<T>& a = b.attention;
  const bool in_place = b.grad_z == a.z || (a.source_logit != nullptr && b.grad_source_logit == a.source_logit);
  return in_place ? a.heads * (a.dim + 1) : 0;
}

// All gradients of one source; grad_target: sums of the chunk that it is in, for GAT.
template <bool Gat, class T>
void source_row(const AttendBackward<T>& b, const HeadColumns<T>& columns, std::int64_t row, std::int64_t last_edge,
                OwnRow<T>& own, T* grad_target) {
  const Attention<T>& a = b.attention;
  const auto bytes = a.heads * a.dim * static_cast<std::int64_t>(sizeof(T));
  const auto packed_bytes = packed_numbers * a.heads * static_cast<std::int64_t>(sizeof(T));
  const std::int32_t* const index = b.by_source.index;
  T* const grad_z = b.grad_z + row * b.grad_z_stride;
  T* const grad_source = Gat ? b.grad_source_logit + row * b.grad_source_logit_stride : nullptr;
  const std::int64_t width = a.heads * a.dim;
  const Source<T> source{row, own.keep(a.z + row * a.z_stride, 0, width),
                         Gat ? own.keep(a.source_logit + row * a.source_logit_stride, width, a.heads) : nullptr};
  if (!b.accumulate) {
    std::memset(grad_z, 0, static_cast<std::size_t>(bytes));
    if constexpr (Gat) std::memset(grad_source, 0, static_cast<std::size_t>(a.heads) * sizeof(T));
  }
  BackwardSpan<T> s(a.heads);
  TargetRows<T> targets;
  const std::int64_t end = b.by_source.end[row];
  for (std::int64_t first = b.by_source.begin[row]; first < end; first += span_edges) {
    const int count = static_cast<int>(end - first < span_edges ? end - first : span_edges);
    const auto fetch = [&](int edge) __attribute__((always_inline)) {
      const std::int64_t ahead =
          first + edge + attend_distance < last_edge ? first + edge + attend_distance : last_edge;
      prefetch(b.grad + index[ahead] * b.grad_stride, bytes);
      prefetch(b.packed + index[ahead] * packed_numbers * a.heads, packed_bytes);
      if constexpr (Gat)
        __builtin_prefetch(grad_target + index[ahead] * a.heads, 1);
      else
        prefetch(a.target + index[ahead] * a.target_stride, bytes);
    };
    differentiate_source<Gat>(b, columns, source, first, count, targets, s);
    if constexpr (Gat) {
      add_half_logits(b, first, count, s, grad_source, grad_target);
      add_weighted_rows(columns, targets.grads, count, s.weight, grad_z, fetch);
    } else {
      add_gatv2_rows<true>(b, columns, source.z, targets.rows, targets.grads, count, s, grad_z, grad_z, fetch);
    }
  }
}

// As many as pay for clearing and adding up their sums; a matter of the block alone, never of the threads.
template <class T>
std::int64_t chunks_of_sources(const AttendBackward<T>& b) {
  constexpr std::int64_t sums_cost = 4;  // columns of an edge that a target's sum of one chunk takes as long as
  const std::int64_t work = work_of_rows(b.by_source.begin, 0, b.by_source.rows) * b.attention.dim;
  std::int64_t chunks = work / (sums_cost * (b.by_target.rows + 1));
  if (chunks > attend_chunks) chunks = attend_chunks;
  if (chunks > b.by_source.rows) chunks = b.by_source.rows;
  return chunks < 1 ? 1 : chunks;
}

// GAT: all in one walk over the sources.
template <class T>
void gat_backward(const AttendBackward<T>& b, const HeadColumns<T>& columns, int threads) {
  const std::int64_t heads = b.attention.heads;
  const std::int64_t numbers = b.by_target.rows * heads;
  T* const apart = reinterpret_cast<T*>(b.workspace);
  const std::int64_t chunks = chunks_of_sources(b);
  for_row_chunks(b.by_source.begin, b.by_source.end, 0, b.by_source.rows, chunks, threads,
                 [&](std::int64_t chunk, std::int64_t first, std::int64_t last, std::int64_t last_edge) {
                   T* const mine = apart + chunk * numbers;
                   std::memset(mine, 0, static_cast<std::size_t>(numbers) * sizeof(T));
                   OwnRow<T> own(kept_of_source(b));
                   for (std::int64_t row = first; row < last; ++row)
                     source_row<true>(b, columns, row, last_edge, own, mine);
                 });
  for_rows(b.by_target.rows, heads * chunks, threads, [&](std::int64_t row) {
    T* const to = b.grad_target_logit + row * b.grad_target_logit_stride;
    for (std::int64_t chunk = 0; chunk < chunks; ++chunk)
      for (std::int64_t head = 0; head < heads; ++head) to[head] += apart[chunk * numbers + row * heads + head];
  });
}

// GATv2's gradients of a target's row, and of the weight in sums.
template <class T>
void gatv2_target_row(const AttendBackward<T>& b, const HeadColumns<T>& columns, std::int64_t row,
                      std::int64_t last_edge, T* grad_weight) {
  const Attention<T>& a = b.attention;
  const T* const packed = b.packed + row * packed_numbers * a.heads;
  const T* const own = a.target + row * a.target_stride;
  BackwardSpan<T> s(a.heads);
  const T* rows[span_edges];
  const std::int64_t end = b.by_target.end[row];
  for (std::int64_t first = b.by_target.begin[row]; first < end; first += span_edges) {
    const int count = static_cast<int>(end - first < span_edges ? end - first : span_edges);
    const std::int32_t* const index = b.by_target.index + first;
    const auto fetch = [&](int edge) __attribute__((always_inline)) {
      const std::int64_t ahead =
          first + edge + attend_distance < last_edge ? first + edge + attend_distance : last_edge;
      prefetch(a.z + b.by_target.index[ahead] * a.z_stride, a.heads * a.dim * static_cast<std::int64_t>(sizeof(T)));
    };
    find_rows(a.z, a.z_stride, index, count, rows);
    gatv2_logits(a, columns, own, rows, count, s.logit);
    pad(s.logit, a.heads, count, -std::numeric_limits<T>::infinity());
    dot_rows(columns, b.grad + row * b.grad_stride, rows, count, s.dots);
    for (std::int64_t head = 0; head < a.heads; ++head)
      for (int edge = 0; edge < whole_registers(count, lanes<T>); ++edge) {
        s.maximum[head][edge] = packed[packed_maximum * a.heads + head];
        s.inverse[head][edge] = packed[packed_inverse * a.heads + head];
        s.product[head][edge] = packed[packed_product * a.heads + head];
      }
    if (a.dropout.threshold != 0)
      dropout_factors(
          a.dropout, a.heads, count, [&](int) { return a.dropout.nodes[row]; },
          [&](int edge) { return a.source_nodes[index[edge]]; }, s.kept);
    differentiate<false>(a, count, s);
    add_gatv2_rows<false>(b, columns, own, rows, rows, count, s, b.grad_target + row * b.grad_target_stride,
                          grad_weight, fetch);
  }
}

template <class T>
void gatv2_backward(const AttendBackward<T>& b, const HeadColumns<T>& columns, int threads) {
  const std::int64_t width = b.attention.heads * b.attention.dim;
  std::int64_t last_edge = -1;
  for (std::int64_t row = 0; row < b.by_target.rows; ++row)
    if (b.by_target.end[row] > b.by_target.begin[row] && b.by_target.end[row] > last_edge)
      last_edge = b.by_target.end[row] - 1;
  sum_rows<T>(b.by_target.rows, width, 1, b.workspace, threads, [&](BlockSums<T>& sums, std::int64_t row) {
    gatv2_target_row(b, columns, row, last_edge, sums.vector(0));
  });
  add_blocks(b.workspace, row_blocks(b.by_target.rows), width, 1, 0, b.grad_weight, true);
  for_balanced_rows(b.by_source.begin, b.by_source.end, 0, b.by_source.rows, 2 * width, threads,
                    [&](std::int64_t first, std::int64_t last, std::int64_t last_edge) {
                      OwnRow<T> own(kept_of_source(b));
                      for (std::int64_t row = first; row < last; ++row)
                        source_row<false>(b, columns, row, last_edge, own, static_cast<T*>(nullptr));
                    });
}

template <class T>
void attend_backward(const AttendBackward<T>& b, int threads) {
  const HeadColumns<T> columns(b.attention.heads, b.attention.dim);
  if (b.attention.weight != nullptr)
    gatv2_backward(b, columns, threads);
  else if (b.by_source.rows > 0)
    gat_backward(b, columns, threads);
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
