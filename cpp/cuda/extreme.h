// Extremes over neighbours: some lanes have a row, and each of them some of its columns, edge after edge in their
// order. So every bit is that of ../extreme.h.
#pragma once

#include "heads.h"

namespace halocast::attention {

// What a group of lanes has: a tile of a row's columns, which are those of one head.
struct Share {
  std::int64_t row;
  int first;  // column
};

// Groups have numbers, as many to a row (shape.blocks) as it has tiles.
HALOCAST_DEVICE Share share_of(const HeadShape& shape, std::int64_t group) {
  return {group / shape.blocks, static_cast<int>(group % shape.blocks) * shape.lanes * lane_columns};
}

template <int vector, bool minimum, class T>
HALOCAST_DEVICE void merge_extremes(const ExtremeForward<T>& f, const HeadShape& shape, std::int64_t group, int lane) {
  const Share share = share_of(shape, group);
  if (share.row >= f.by_target.rows) return;
  const int dim = static_cast<int>(f.dim);
  T* const value = f.value + share.row * f.value_stride;
  T* const ties = f.ties + share.row * f.ties_stride;
  Tile<T> best = tile_of(T(0)), equal = tile_of(T(0));
  load_tile<vector>(shape, value, dim, share.first, lane, best);
  load_tile<vector>(shape, ties, dim, share.first, lane, equal);
  const std::int64_t end = load_constant_as<std::int64_t>(f.by_target.end + share.row);
#pragma unroll 4
  for (std::int64_t edge = load_constant_as<std::int64_t>(f.by_target.begin + share.row); edge < end; ++edge) {
    const T* const in = f.in + load_constant_as<std::int32_t>(f.by_target.index + edge) * f.in_stride;
    read_tile<vector>(shape, in, dim, share.first, lane, [&](int at, T x) {
      const bool better = (minimum ? x < best.of[at] : x > best.of[at]) || x != x;
      const T before = x == best.of[at] ? equal.of[at] + 1 : equal.of[at];
      equal.of[at] = better ? T(1) : before;
      best.of[at] = better ? x : best.of[at];
    });
  }
  store_tile<vector>(shape, value, dim, share.first, lane, best);
  store_tile<vector>(shape, ties, dim, share.first, lane, equal);
}

// Reads its own columns of `in` before it writes any, so that the gradient may take their place.
template <int vector, class T>
HALOCAST_DEVICE void extreme_backward(const ExtremeBackward<T>& b, const HeadShape& shape, std::int64_t group,
                                      int lane) {
  const Share share = share_of(shape, group);
  if (share.row >= b.by_source.rows) return;
  const int dim = static_cast<int>(b.dim);
  T* const to = b.grad_in + share.row * b.grad_in_stride;
  Tile<T> in = tile_of(T(0)), grad = tile_of(T(0));
  load_tile<vector>(shape, b.in + share.row * b.in_stride, dim, share.first, lane, in);
  if (b.accumulate) load_tile<vector>(shape, to, dim, share.first, lane, grad);
  const std::int64_t end = load_constant_as<std::int64_t>(b.by_source.end + share.row);
#pragma unroll 4
  for (std::int64_t edge = load_constant_as<std::int64_t>(b.by_source.begin + share.row); edge < end; ++edge) {
    const std::int64_t target = load_constant_as<std::int32_t>(b.by_source.index + edge);
    const T* const value = b.value + target * b.value_stride;
    const T* const shares = b.share + target * b.share_stride;
    for_columns<vector>(shape, dim, share.first, lane, [&](int column, int at) {
      T values[vector], parts[vector];
      codec::load_constant_vector<vector>(value + column, values);
      codec::load_constant_vector<vector>(shares + column, parts);
#pragma unroll
      for (int j = 0; j < vector; ++j) grad.of[at + j] += in.of[at + j] == values[j] ? parts[j] : T(0);
    });
  }
  store_tile<vector>(shape, to, dim, share.first, lane, grad);
}

}  // namespace halocast::attention
