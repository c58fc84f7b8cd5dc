// Attention's backward pass: a walk over targets for what they get, and for the gradients of edges and of the weight;
// then one over sources, which may be written over by their gradients. Every sum is one warp's, in the order of the
// edges, or one over chunks of targets in their order: nothing is added atomically, so that results repeat.
#pragma once

#include "attention.h"

namespace halocast::attention {

// From the logit l and the dot e · z of each lane's edge to its weight a M and slope d l (GAT: d x). Lanes without an
// edge get zeros. of_source: the edges are a source's.
template <bool gat, bool of_source, class T>
HALOCAST_DEVICE void differentiate(const Warp& warp, const AttendBackward<T>& b, const RoundKeys& keys,
                                   const HeadShape& shape, const Batch& batch, Edge<T>& edge) {
  const Attention<T>& a = b.attention;
  warp.each([&](int lane) {
    const Place place = place_of(shape, batch.block, a.heads, lane);
    const std::int64_t target = of_source ? edge.index[lane] : batch.row;
    const T* const packed = b.packed + target * packed_numbers * a.heads + place.head;
    const T difference = edge.logit[lane] - load_constant_as<T>(packed + packed_maximum * a.heads);
    const T share =
        exponential(difference > 0 ? T(0) : difference) * load_constant_as<T>(packed + packed_inverse * a.heads);
    T weight = share, dot = edge.dot[lane];
    if (a.dropout.threshold != 0) {
      const T factor = kept(a, keys, target, of_source ? batch.row : edge.index[lane], place.head);
      weight *= factor;
      dot *= factor;
    }
    T slope = share * (dot - load_constant_as<T>(packed + packed_product * a.heads));
    if (gat) slope *= leaky_derivative(edge.logit[lane], a.slope);  // l has the sign of x
    const bool exists = place.lane < batch.count;
    edge.weight[lane] = exists ? weight : T(0);
    edge.slope[lane] = exists ? slope : T(0);
  });
}

// Slopes of a batch of a target's edges.
template <int vector, bool gat, class T>
HALOCAST_DEVICE void target_slopes(const Warp& warp, const AttendBackward<T>& b, const RoundKeys& keys,
                                   const HeadShape& shape, const Batch& batch, Edge<T>& edge) {
  const Attention<T>& a = b.attention;
  target_logits<vector, gat>(warp, shape, a, batch, edge);
  dot_rows<vector>(warp, shape, a, batch, {b.grad + batch.row * b.grad_stride, a.z, a.z_stride}, edge);
  differentiate<gat, false>(warp, b, keys, shape, batch, edge);
}

// GAT's gradients of a target's half-logits and of its edges' own.
template <int vector, class T>
HALOCAST_DEVICE void gat_target_row(const Warp& warp, const AttendBackward<T>& b, const RoundKeys& keys,
                                    const HeadShape& shape, std::int64_t row, std::int64_t block) {
  const std::int64_t heads = b.attention.heads;
  PerLane<T> total;
  warp.each([&](int lane) { total[lane] = 0; });
  for_batches(shape, b.by_target, row, block, [&](const Batch& batch) {
    Edge<T> edge;
    target_slopes<vector, true>(warp, b, keys, shape, batch, edge);
    warp.each([&](int lane) {
      const Place place = place_of(shape, block, heads, lane);
      total[lane] += edge.slope[lane];
      if (b.grad_edge_logit != nullptr && place.exists && place.lane < batch.count)
        b.grad_edge_logit[(batch.first + place.lane) * heads + place.head] = edge.slope[lane];
    });
  });
  sum_lanes(warp, shape, total);
  warp.each([&](int lane) {
    const Place place = place_of(shape, block, heads, lane);
    if (place.exists && place.lane == 0)
      b.grad_target_logit[row * b.grad_target_logit_stride + place.head] += total[lane];
  });
}

// What GATv2's targets of a chunk add up: for the row they are at, and for the weight.
template <class T>
struct TargetSums {
  PerLane<Tile<T>> own;
  PerLane<Tile<T>> scaled;
  PerLane<Tile<T>> weight;
};

template <int vector, class T>
HALOCAST_DEVICE void gatv2_target_row(const Warp& warp, const AttendBackward<T>& b, const RoundKeys& keys,
                                      const HeadShape& shape, std::int64_t row, std::int64_t block, int first_column,
                                      TargetSums<T>& sums) {
  const Attention<T>& a = b.attention;
  const int dim = static_cast<int>(a.dim);
  warp.each([&](int lane) {
    const Place place = place_of(shape, block, a.heads, lane);
    sums.own[lane] = sums.scaled[lane] = tile_of(T(0));
    load_tile<vector>(shape, a.target + row * a.target_stride + place.head * a.dim, dim, first_column, place.lane,
                      sums.own[lane]);
  });
  for_batches(shape, b.by_target, row, block, [&](const Batch& batch) {
    Edge<T> edge;
    target_slopes<vector, false>(warp, b, keys, shape, batch, edge);
    warp.each([&](int lane) {
      const Place place = place_of(shape, block, a.heads, lane);
      const T* const z = a.z + place.head * a.dim;
      for_edges(warp, shape, batch, edge, lane, edge.slope, [&](T slope, std::int32_t index) {
        read_tile<vector>(shape, z + index * a.z_stride, dim, first_column, place.lane, [&](int at, T value) {
          const T x = sums.own[lane].of[at] + value;
          const T d = leaky_derivative(x, a.slope) * slope;
          sums.scaled[lane].of[at] += d;
          sums.weight[lane].of[at] += d * x;
        });
      });
    });
  });
  warp.each([&](int lane) {
    const Place place = place_of(shape, block, a.heads, lane);
    if (!place.exists) return;
    T* const to = b.grad_target + row * b.grad_target_stride + place.head * a.dim;
    Tile<T> grad = tile_of(T(0));
    load_tile<vector>(shape, to, dim, first_column, place.lane, grad);
    read_tile<vector>(shape, a.weight + place.head * a.dim, dim, first_column, place.lane,
                      [&](int at, T weight) { grad.of[at] += sums.scaled[lane].of[at] * weight; });
    store_tile<vector>(shape, to, dim, first_column, place.lane, grad);
  });
}

// GATv2's gradients of a chunk of targets, and their part of the weight's: workspace [chunks, heads * dim].
template <int vector, class T>
HALOCAST_DEVICE void gatv2_target_chunk(const Warp& warp, const AttendBackward<T>& b, const RoundKeys& keys,
                                        const HeadShape& shape, std::int64_t chunk, std::int64_t block) {
  const Attention<T>& a = b.attention;
  const int dim = static_cast<int>(a.dim);
  const std::int64_t upto = (chunk + 1) * chunk_targets;
  const std::int64_t end = upto < b.by_target.rows ? upto : b.by_target.rows;
  for (int first = 0; first < dim; first += shape.lanes * lane_columns) {
    TargetSums<T> sums;
    warp.each([&](int lane) { sums.weight[lane] = tile_of(T(0)); });
    for (std::int64_t row = chunk * chunk_targets; row < end; ++row)
      gatv2_target_row<vector>(warp, b, keys, shape, row, block, first, sums);
    warp.each([&](int lane) {
      const Place place = place_of(shape, block, a.heads, lane);
      T* const to = reinterpret_cast<T*>(b.workspace) + (chunk * a.heads + place.head) * a.dim;
      if (place.exists) store_tile<vector>(shape, to, dim, first, place.lane, sums.weight[lane]);
    });
  }
}

// Adds up the chunks' parts of one column of the weight's gradient.
template <class T>
HALOCAST_DEVICE void add_weight_column(const Warp& warp, const AttendBackward<T>& b, std::int64_t chunks,
                                       std::int64_t column) {
  const std::int64_t width = b.attention.heads * b.attention.dim;
  PerLane<double> total;
  warp.each([&](int lane) {
    total[lane] = 0;
    for (std::int64_t chunk = lane; chunk < chunks; chunk += warp_lanes)
      total[lane] += static_cast<double>(reinterpret_cast<const T*>(b.workspace)[chunk * width + column]);
  });
  for (int distance = 1; distance < warp_lanes; distance *= 2)
    warp.combine(total, distance, [](double one, double other) { return one + other; });
  warp.each([&](int lane) {
    if (lane == 0) b.grad_weight[column] = static_cast<T>(static_cast<double>(b.grad_weight[column]) + total[lane]);
  });
}

// Weights and slopes of a batch of a source's edges.
template <int vector, bool gat, class T>
HALOCAST_DEVICE void source_slopes(const Warp& warp, const AttendBackward<T>& b, const RoundKeys& keys,
                                   const HeadShape& shape, const Batch& batch, Edge<T>& edge) {
  const Attention<T>& a = b.attention;
  const T* const z = a.z + batch.row * a.z_stride;
  load_indices(warp, shape, batch, edge);
  if (gat)
    gat_logits(warp, shape, a, batch,
               {a.source_logit + batch.row * a.source_logit_stride, b.packed, packed_numbers * a.heads}, b.entry, edge);
  else
    gatv2_logits<vector>(warp, shape, a, batch, {z, a.target, a.target_stride}, edge);
  dot_rows<vector>(warp, shape, a, batch, {z, b.grad, b.grad_stride}, edge);
  differentiate<gat, true>(warp, b, keys, shape, batch, edge);
}

// What a source adds up for its values: weights times gradients, and GATv2's part that is still to be scaled.
template <class T>
struct SourceSums {
  PerLane<Tile<T>> plain;
  PerLane<Tile<T>> scaled;
};

template <int vector, bool gat, class T>
HALOCAST_DEVICE void add_source_batch(const Warp& warp, const AttendBackward<T>& b, const HeadShape& shape,
                                      const Batch& batch, Edge<T>& edge, int first_column, SourceSums<T>& sums) {
  const Attention<T>& a = b.attention;
  const int dim = static_cast<int>(a.dim);
  warp.each([&](int lane) {
    const Place place = place_of(shape, batch.block, a.heads, lane);
    const T* const grad = b.grad + place.head * a.dim;
    for_edges(warp, shape, batch, edge, lane, edge.weight, [&](T weight, std::int32_t index) {
      read_tile<vector>(shape, grad + index * b.grad_stride, dim, first_column, place.lane,
                        [&](int at, T value) { sums.plain[lane].of[at] += weight * value; });
    });
    if (gat) return;
    const T* const others = a.target + place.head * a.dim;
    Tile<T> own = tile_of(T(0));
    load_tile<vector>(shape, a.z + batch.row * a.z_stride + place.head * a.dim, dim, first_column, place.lane, own);
    for_edges(warp, shape, batch, edge, lane, edge.slope, [&](T slope, std::int32_t index) {
      read_tile<vector>(shape, others + index * a.target_stride, dim, first_column, place.lane, [&](int at, T value) {
        sums.scaled[lane].of[at] += leaky_derivative(own.of[at] + value, a.slope) * slope;
      });
    });
  });
}

// All gradients of a source.
template <int vector, bool gat, class T>
HALOCAST_DEVICE void source_row(const Warp& warp, const AttendBackward<T>& b, const RoundKeys& keys,
                                const HeadShape& shape, std::int64_t row, std::int64_t block) {
  const Attention<T>& a = b.attention;
  const int dim = static_cast<int>(a.dim);
  PerLane<T> half;
  warp.each([&](int lane) { half[lane] = 0; });
  for (int first = 0; first < dim; first += shape.lanes * lane_columns) {
    SourceSums<T> sums;
    warp.each([&](int lane) { sums.plain[lane] = sums.scaled[lane] = tile_of(T(0)); });
    for_batches(shape, b.by_source, row, block, [&](const Batch& batch) {
      Edge<T> edge;
      source_slopes<vector, gat>(warp, b, keys, shape, batch, edge);
      if (first == 0) warp.each([&](int lane) { half[lane] += edge.slope[lane]; });
      add_source_batch<vector, gat>(warp, b, shape, batch, edge, first, sums);
    });
    warp.each([&](int lane) {
      const Place place = place_of(shape, block, a.heads, lane);
      if (!place.exists) return;
      T* const to = b.grad_z + row * b.grad_z_stride + place.head * a.dim;
      Tile<T> grad = tile_of(T(0));
      if (b.accumulate) load_tile<vector>(shape, to, dim, first, place.lane, grad);
#pragma unroll
      for (int j = 0; j < lane_columns; ++j) grad.of[j] += sums.plain[lane].of[j];
      if (!gat)
        read_tile<vector>(shape, a.weight + place.head * a.dim, dim, first, place.lane,
                          [&](int at, T weight) { grad.of[at] += sums.scaled[lane].of[at] * weight; });
      store_tile<vector>(shape, to, dim, first, place.lane, grad);
    });
  }
  if (!gat) return;
  sum_lanes(warp, shape, half);
  warp.each([&](int lane) {
    const Place place = place_of(shape, block, a.heads, lane);
    if (!place.exists || place.lane != 0) return;
    T* const to = b.grad_source_logit + row * b.grad_source_logit_stride + place.head;
    *to = b.accumulate ? *to + half[lane] : half[lane];
  });
}

}  // namespace halocast::attention
