// Attention's forward pass: a warp has a target and some of its heads. What the row has so far stays in registers while
// its edges are merged.
#pragma once

#include "attention.h"

namespace halocast::attention {

// What a lane's head has so far.
template <class T>
struct Merged {
  PerLane<T> maximum;
  PerLane<T> sum;
  PerLane<Tile<T>> out;
};

// Online softmax: edge.logit -> edge.weight, before dropout; the rest of the row is brought to the new maximum.
template <class T>
HALOCAST_DEVICE void merge_logits(const Warp& warp, const HeadShape& shape, const Batch& batch, Edge<T>& edge,
                                  Merged<T>& merged) {
  PerLane<T> top, total, factor;
  warp.each([&](int lane) {
    if ((lane & (shape.lanes - 1)) >= batch.count) edge.logit[lane] = -infinity(T());
    top[lane] = edge.logit[lane];
  });
  combine_lanes(warp, shape, top, [](T a, T b) { return larger(a, b); });
  warp.each([&](int lane) {
    const T before = merged.maximum[lane];
    const T now = larger(before, top[lane]);
    const T shift = now == -infinity(T()) ? T(0) : now;
    edge.weight[lane] = exponential(edge.logit[lane] - shift);
    factor[lane] = before == now ? T(1) : exponential(before - shift);
    total[lane] = edge.weight[lane];
    merged.maximum[lane] = now;
  });
  sum_lanes(warp, shape, total);
  warp.each([&](int lane) {
    merged.sum[lane] = merged.sum[lane] * factor[lane] + total[lane];
    if (factor[lane] == T(1)) return;
#pragma unroll
    for (T& column : merged.out[lane].of) column *= factor[lane];
  });
}

template <int vector, bool gat, class T>
HALOCAST_DEVICE void attend_batch(const Warp& warp, const AttendForward<T>& f, const RoundKeys& keys,
                                  const HeadShape& shape, const Batch& batch, int first_column, Merged<T>& merged) {
  const Attention<T>& a = f.attention;
  Edge<T> edge;
  target_logits<vector, gat>(warp, shape, a, batch, edge);
  merge_logits(warp, shape, batch, edge, merged);
  if (a.dropout.threshold != 0)
    warp.each([&](int lane) {
      edge.weight[lane] *= kept(a, keys, batch.row, edge.index[lane], place_of(shape, batch.block, a.heads, lane).head);
    });
  warp.each([&](int lane) {
    const Place place = place_of(shape, batch.block, a.heads, lane);
    const T* const z = a.z + place.head * a.dim;
    Tile<T>& out = merged.out[lane];
    for_edges(warp, shape, batch, edge, lane, edge.weight, [&](T weight, std::int32_t index) {
      read_tile<vector>(shape, z + index * a.z_stride, static_cast<int>(a.dim), first_column, place.lane,
                        [&](int at, T value) { out.of[at] += weight * value; });
    });
  });
}

// A head wider than a tile is gone through once for each, from the same maximum and sum.
template <int vector, bool gat, class T>
HALOCAST_DEVICE void attend_row(const Warp& warp, const AttendForward<T>& f, const RoundKeys& keys,
                                const HeadShape& shape, std::int64_t row, std::int64_t block) {
  const Attention<T>& a = f.attention;
  const int dim = static_cast<int>(a.dim);
  if (f.by_target.begin[row] >= f.by_target.end[row]) return;
  Merged<T> merged;
  for (int first = 0; first < dim; first += shape.lanes * lane_columns) {
    warp.each([&](int lane) {
      const Place place = place_of(shape, block, a.heads, lane);
      merged.maximum[lane] = f.maximum[row * a.heads + place.head];
      merged.sum[lane] = f.sum[row * a.heads + place.head];
      merged.out[lane] = tile_of(T(0));
      load_tile<vector>(shape, f.out + row * f.out_stride + place.head * a.dim, dim, first, place.lane,
                        merged.out[lane]);
    });
    for_batches(shape, f.by_target, row, block,
                [&](const Batch& batch) { attend_batch<vector, gat>(warp, f, keys, shape, batch, first, merged); });
    warp.each([&](int lane) {
      const Place place = place_of(shape, block, a.heads, lane);
      if (!place.exists) return;
      store_tile<vector>(shape, f.out + row * f.out_stride + place.head * a.dim, dim, first, place.lane,
                         merged.out[lane]);
    });
  }
  warp.each([&](int lane) {
    const Place place = place_of(shape, block, a.heads, lane);
    if (!place.exists || place.lane != 0) return;
    f.maximum[row * a.heads + place.head] = merged.maximum[lane];
    f.sum[row * a.heads + place.head] = merged.sum[lane];
  });
}

template <class T>
HALOCAST_DEVICE void finish_row(const AttendFinish<T>& f, std::int64_t row, int lane) {
  T* const out = f.out + row * f.out_stride;
  const int width = static_cast<int>(f.heads * f.dim), dim = static_cast<int>(f.dim);
  for (int column = lane; column < width; column += warp_lanes) {
    const T sum = load_constant_as<T>(f.sum + row * f.heads + column / dim);
    out[column] *= sum == 0 ? T(0) : 1 / sum;
  }
}

template <class T>
HALOCAST_DEVICE void pack_row(const Warp& warp, const AttendPack<T>& p, const HeadShape& shape, std::int64_t row,
                              std::int64_t block) {
  PerLane<T> product;
  warp.each([&](int lane) {
    const Place place = place_of(shape, block, p.heads, lane);
    const T* const out = p.out + row * p.out_stride + place.head * p.dim;
    const T* const grad = p.grad + row * p.grad_stride + place.head * p.dim;
    product[lane] = 0;
    for (std::int64_t j = place.lane; j < p.dim; j += shape.lanes)
      product[lane] += load_constant_as<T>(out + j) * load_constant_as<T>(grad + j);
  });
  sum_lanes(warp, shape, product);
  warp.each([&](int lane) {
    const Place place = place_of(shape, block, p.heads, lane);
    if (!place.exists || place.lane != 0) return;
    T* const to = p.packed + row * packed_numbers * p.heads + place.head;
    const T maximum = p.maximum[row * p.heads + place.head];
    const T sum = p.sum[row * p.heads + place.head];
    to[packed_logit * p.heads] =
        p.target_logit != nullptr ? p.target_logit[row * p.target_logit_stride + place.head] : T(0);
    to[packed_maximum * p.heads] = maximum == -infinity(T()) ? T(0) : maximum;
    to[packed_inverse * p.heads] = sum == 0 ? T(0) : 1 / sum;
    to[packed_product * p.heads] = product[lane];
  });
}

}  // namespace halocast::attention
