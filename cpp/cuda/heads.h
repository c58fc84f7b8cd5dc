// How attention's warps share rows of heads: a warp has one row and some of its heads, a head some of the lanes, and
// each lane some of the head's columns. Lanes whose head does not exist follow the last one, and write nothing.
#pragma once

#include "launch_attend.h"
#include "rows.h"
#include "wire.h"

namespace halocast::attention {

using codec::load_constant_as;
using codec::PerLane;
using codec::RoundKeys;
using codec::Warp;
using codec::warp_lanes;

// Columns of a head that a lane holds in registers, and edges whose rows it reads at once.
constexpr int lane_columns = 8;
constexpr int edges_at_once = 4;

static_assert(in_place_dim == warp_lanes * lane_columns, "what the registers of a warp hold");

// lanes: of one head, 2^shift. heads: of a warp. blocks: of heads in a row. vector: elements that one access moves.
struct HeadShape {
  int shift, lanes, heads, vector;
  std::int64_t blocks;
};

// As few lanes as read a head's columns in one access each; more where the heads leave lanes over.
inline HeadShape head_shape(std::int64_t heads, std::int64_t dim, int vector) {
  int shift = 0;
  while (shift < 5 && (std::int64_t{vector} << shift) < dim) ++shift;
  while (shift < 5 && (warp_lanes >> (shift + 1)) >= heads) ++shift;
  const int at_once = warp_lanes >> shift;
  return {shift, 1 << shift, at_once, vector, (heads + at_once - 1) / at_once};
}

// For extremes, whose lanes share a row's columns: a block is a tile of them.
inline HeadShape row_shape(std::int64_t dim, int vector) {
  HeadShape shape = head_shape(warp_lanes, dim, vector);
  shape.blocks = (dim + shape.lanes * lane_columns - 1) / (shape.lanes * lane_columns);
  return shape;
}

// Finds the widest access that every row allows: 16 bytes or one element.
template <class T>
class Alignment {
 public:
  explicit Alignment(std::int64_t dim) : bits_(static_cast<std::uint64_t>(dim)) {}

  Alignment& add(const T* matrix, std::int64_t stride) {
    bits_ |= reinterpret_cast<std::uintptr_t>(matrix) / sizeof(T) | static_cast<std::uint64_t>(stride);
    return *this;
  }

  int vector() const { return bits_ % (16 / sizeof(T)) == 0 ? static_cast<int>(16 / sizeof(T)) : 1; }

 private:
  std::uint64_t bits_;
};

// Where a lane works: on columns lane * vector, (lane + lanes) * vector, ... of a head.
struct Place {
  std::int64_t head;
  bool exists;
  int lane;   // 0 to lanes - 1
  int first;  // lane of the warp that is the head's first
};

HALOCAST_DEVICE Place place_of(const HeadShape& shape, std::int64_t block, std::int64_t heads, int lane) {
  const std::int64_t head = block * shape.heads + (lane >> shape.shift);
  const bool exists = head < heads;
  return {exists ? head : heads - 1, exists, lane & (shape.lanes - 1), lane & ~(shape.lanes - 1)};
}

// Combines what the lanes of each head have; all of them get the result.
template <class T, class Combine>
HALOCAST_DEVICE void combine_lanes(const Warp& warp, const HeadShape& shape, PerLane<T>& values,
                                   const Combine& combine) {
  for (int distance = 1; distance < shape.lanes; distance *= 2) warp.combine(values, distance, combine);
}

template <class T>
HALOCAST_DEVICE void sum_lanes(const Warp& warp, const HeadShape& shape, PerLane<T>& values) {
  combine_lanes(warp, shape, values, [](T a, T b) { return a + b; });
}

// A lane's columns of one tile of a head, which has lanes * lane_columns columns.
template <class T>
struct Tile {
  T of[lane_columns];
};

// Calls visit(column, place in the tile) for the first of each `vector` columns that a lane has of the tile at `first`.
template <int vector, class Visit>
HALOCAST_DEVICE void for_columns(const HeadShape& shape, int dim, int first, int lane, const Visit& visit) {
#pragma unroll
  for (int i = 0; i < lane_columns / vector; ++i) {
    if (first + i * shape.lanes * vector >= dim) break;  // for all lanes
    const int column = first + (i * shape.lanes + lane) * vector;
    if (column < dim) visit(column, i * vector);
  }
}

template <class T>
HALOCAST_DEVICE Tile<T> tile_of(T value) {
  Tile<T> tile;
#pragma unroll
  for (int j = 0; j < lane_columns; ++j) tile.of[j] = value;
  return tile;
}

// Calls add(place in the tile, element) for the lane's columns of a head.
template <int vector, class T, class Add>
HALOCAST_DEVICE void read_tile(const HeadShape& shape, const T* head, int dim, int first, int lane, const Add& add) {
  for_columns<vector>(shape, dim, first, lane, [&](int column, int at) {
    T values[vector];
    codec::load_constant_vector<vector>(head + column, values);
#pragma unroll
    for (int j = 0; j < vector; ++j) add(at + j, values[j]);
  });
}

// The same from memory that the kernel may write later.
template <int vector, class T>
HALOCAST_DEVICE void load_tile(const HeadShape& shape, const T* head, int dim, int first, int lane, Tile<T>& tile) {
  for_columns<vector>(shape, dim, first, lane,
                      [&](int column, int at) { codec::load_vector<vector>(head + column, tile.of + at); });
}

template <int vector, class T>
HALOCAST_DEVICE void store_tile(const HeadShape& shape, T* head, int dim, int first, int lane, const Tile<T>& tile) {
  for_columns<vector>(shape, dim, first, lane,
                      [&](int column, int at) { codec::store_vector<vector>(head + column, tile.of + at); });
}

}  // namespace halocast::attention
