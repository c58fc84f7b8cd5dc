// Attention's logits and what follows from them, a batch of edges at a time: as many as a head has lanes, an edge a
// lane. The formulas are those of ../attend.h and ../attend_backward.h.
#pragma once

#include "heads.h"

namespace halocast::attention {

#if defined(__CUDACC__)
HALOCAST_DEVICE float exponential(float x) { return expf(x); }
HALOCAST_DEVICE double exponential(double x) { return exp(x); }
HALOCAST_DEVICE float infinity(float) { return __int_as_float(0x7f800000); }
HALOCAST_DEVICE double infinity(double) { return __longlong_as_double(0x7ff0000000000000); }
#else
template <class T>
T exponential(T x) {
  return std::exp(x);
}
template <class T>
T infinity(T) {
  return static_cast<T>(INFINITY);
}
#endif

template <class T>
HALOCAST_DEVICE T leaky(T x, T slope) {
  return x > 0 ? x : x * slope;
}

template <class T>
HALOCAST_DEVICE T leaky_derivative(T x, T slope) {
  return x > 0 ? T(1) : slope;
}

// The larger of two; the other one of a NaN.
template <class T>
HALOCAST_DEVICE T larger(T a, T b) {
  return b > a || a != a ? b : a;
}

// A warp's row and block of heads, and a batch of the row's edges: [first, first + count) of index.
struct Batch {
  std::int64_t row;
  std::int64_t block;
  std::int64_t first;
  int count;
  const std::int32_t* index;
};

// Calls run(batch) for a row's edges.
template <class Run>
HALOCAST_DEVICE void for_batches(const HeadShape& shape, const BlockRows& rows, std::int64_t row, std::int64_t block,
                                 const Run& run) {
  const std::int64_t end = load_constant_as<std::int64_t>(rows.end + row);
  for (std::int64_t first = load_constant_as<std::int64_t>(rows.begin + row); first < end; first += shape.lanes) {
    const std::int64_t left = end - first;
    run(Batch{row, block, first, left < shape.lanes ? static_cast<int>(left) : shape.lanes, rows.index});
  }
}

// What a lane has of its edge, for its head. Lanes without an edge repeat the last one's index.
template <class T>
struct Edge {
  PerLane<std::int32_t> index;
  PerLane<T> logit;
  PerLane<T> dot;     // of the source's values and the target's gradient
  PerLane<T> weight;  // of the sum over edges
  PerLane<T> slope;   // gradient of the logit
};

template <class T>
HALOCAST_DEVICE void load_indices(const Warp& warp, const HeadShape& shape, const Batch& batch, Edge<T>& edge) {
  warp.each([&](int lane) {
    const int mine = lane & (shape.lanes - 1);
    const int at = mine < batch.count ? mine : batch.count - 1;
    edge.index[lane] = load_constant_as<std::int32_t>(batch.index + batch.first + at);
    edge.logit[lane] = edge.dot[lane] = 0;
  });
}

// A row, and the matrix of the rows at its edges' other end: heads of `dim` columns each.
template <class T>
struct Sides {
  const T* own;
  const T* others;
  std::int64_t stride;
};

// For each edge, to[its lane] = the sum over the head's columns of term(column's weight, own, other); weight: [heads *
// dim], or null for ones.
template <int vector, class T, class Term>
HALOCAST_DEVICE void sum_per_edge(const Warp& warp, const HeadShape& shape, const Attention<T>& a, const Batch& batch,
                                  Edge<T>& edge, const Sides<T>& sides, const T* weight, const Term& term,
                                  PerLane<T>& to) {
  const int dim = static_cast<int>(a.dim);
  for (int first = 0; first < batch.count; first += edges_at_once) {
    PerLane<T> sums[edges_at_once];
    warp.each([&](int lane) {
      const Place place = place_of(shape, batch.block, a.heads, lane);
      const std::int64_t head = place.head * a.dim;
      const T* others[edges_at_once];
#pragma unroll
      for (int e = 0; e < edges_at_once; ++e) {
        const int source = first + e < batch.count ? first + e : first;
        others[e] = sides.others + warp.of(edge.index, place.first + source) * sides.stride + head;
        sums[e][lane] = 0;
      }
      for (int column = place.lane * vector; column < dim; column += shape.lanes * vector) {
        T own[vector], factor[vector], other[edges_at_once][vector];
#pragma unroll
        for (int e = 0; e < edges_at_once; ++e) codec::load_constant_vector<vector>(others[e] + column, other[e]);
        codec::load_vector<vector>(sides.own + head + column, own);
        if (weight != nullptr) codec::load_constant_vector<vector>(weight + head + column, factor);
#pragma unroll
        for (int j = 0; j < vector; ++j) {
          const T by = weight != nullptr ? factor[j] : T(1);
#pragma unroll
          for (int e = 0; e < edges_at_once; ++e) sums[e][lane] += term(by, own[j], other[e][j]);
        }
      }
    });
#pragma unroll
    for (int e = 0; e < edges_at_once; ++e) {
      sum_lanes(warp, shape, sums[e]);
      warp.each([&](int lane) {
        if ((lane & (shape.lanes - 1)) == first + e) to[lane] = sums[e][lane];
      });
    }
  }
}

// GATv2's logits.
template <int vector, class T>
HALOCAST_DEVICE void gatv2_logits(const Warp& warp, const HeadShape& shape, const Attention<T>& a, const Batch& batch,
                                  const Sides<T>& sides, Edge<T>& edge) {
  sum_per_edge<vector>(
      warp, shape, a, batch, edge, sides, a.weight,
      [&](T weight, T own, T other) { return weight * leaky(own + other, a.slope); }, edge.logit);
}

template <int vector, class T>
HALOCAST_DEVICE void dot_rows(const Warp& warp, const HeadShape& shape, const Attention<T>& a, const Batch& batch,
                              const Sides<T>& sides, Edge<T>& edge) {
  sum_per_edge<vector>(
      warp, shape, a, batch, edge, sides, static_cast<const T*>(nullptr), [](T, T own, T other) { return own * other; },
      edge.dot);
}

// GAT's: `own` and `others` are half-logits; entry: where the edges' own stand, null for the edges' own numbers.
template <class T>
HALOCAST_DEVICE void gat_logits(const Warp& warp, const HeadShape& shape, const Attention<T>& a, const Batch& batch,
                                const Sides<T>& sides, const std::int64_t* entry, Edge<T>& edge) {
  warp.each([&](int lane) {
    const Place place = place_of(shape, batch.block, a.heads, lane);
    T x = load_constant_as<T>(sides.others + edge.index[lane] * sides.stride + place.head) + sides.own[place.head];
    if (a.edge_logit != nullptr) {
      const std::int64_t at = batch.first + (place.lane < batch.count ? place.lane : batch.count - 1);
      const std::int64_t number = entry != nullptr ? load_constant_as<std::int64_t>(entry + at) : at;
      x += load_constant_as<T>(a.edge_logit + number * a.heads + place.head);
    }
    edge.logit[lane] = leaky(x, a.slope);
  });
}

// Logits of a target's edges.
template <int vector, bool gat, class T>
HALOCAST_DEVICE void target_logits(const Warp& warp, const HeadShape& shape, const Attention<T>& a, const Batch& batch,
                                   Edge<T>& edge) {
  load_indices(warp, shape, batch, edge);
  if (gat)
    gat_logits(warp, shape, a, batch,
               {a.target_logit + batch.row * a.target_logit_stride, a.source_logit, a.source_logit_stride}, nullptr,
               edge);
  else
    gatv2_logits<vector>(warp, shape, a, batch, {a.target + batch.row * a.target_stride, a.z, a.z_stride}, edge);
}

// Dropout's factor; the word is that of ../attend_span.h.
template <class T>
HALOCAST_DEVICE T kept(const Attention<T>& a, const RoundKeys& keys, std::int64_t target, std::int64_t source,
                       std::int64_t head) {
  const std::int64_t number = load_constant_as<std::int64_t>(a.source_nodes + source) * ((a.heads + 3) / 4) + head / 4;
  std::uint32_t words[4];
  codec::random_block(a.dropout.stream, keys, load_constant_as<std::int64_t>(a.dropout.nodes + target),
                      static_cast<std::uint32_t>(number), words);
  const std::uint32_t even = (head & 2) != 0 ? words[2] : words[0];
  const std::uint32_t odd = (head & 2) != 0 ? words[3] : words[1];
  const std::uint32_t word = (head & 1) != 0 ? odd : even;
  return word > static_cast<std::uint32_t>(a.dropout.threshold - 1) ? static_cast<T>(a.dropout.scale) : T(0);
}

// Calls add(edge's number, index) for each edge of a batch, all lanes at once; numbers: one of what `edge` has.
template <class T, class Add>
HALOCAST_DEVICE void for_edges(const Warp& warp, const HeadShape& shape, const Batch& batch, Edge<T>& edge, int lane,
                               PerLane<T>& numbers, const Add& add) {
  const int first = lane & ~(shape.lanes - 1);
#pragma unroll 4
  for (int e = 0; e < batch.count; ++e) add(warp.of(numbers, first + e), warp.of(edge.index, first + e));
}

}  // namespace halocast::attention
