// Rows of floats: where they are, and some of their values as one access.
#pragma once

#include "jobs.h"
#include "lanes.h"

namespace halocast::codec {

HALOCAST_DEVICE std::int64_t row_of(const RowIndex& index, std::int64_t row) {
  if (index.index32 != nullptr) return load_constant_as<std::int32_t>(index.index32 + row);
  if (index.index64 != nullptr) return load_constant_as<std::int64_t>(index.index64 + row);
  return row;
}

template <int vector>
HALOCAST_DEVICE void load_vector(const float* from, float* to) {
  if (vector == 4) {
    const Quad quad = load_as<Quad>(from);
    to[0] = quad.x, to[1] = quad.y, to[2] = quad.z, to[3] = quad.w;
  } else if (vector == 2) {
    const Pair pair = load_as<Pair>(from);
    to[0] = pair.x, to[1] = pair.y;
  } else {
    to[0] = from[0];
  }
}

// From memory that nobody writes while the kernel runs.
template <int vector>
HALOCAST_DEVICE void load_constant_vector(const float* from, float* to) {
  if (vector == 4) {
    const Quad quad = load_constant_as<Quad>(from);
    to[0] = quad.x, to[1] = quad.y, to[2] = quad.z, to[3] = quad.w;
  } else if (vector == 2) {
    const Pair pair = load_constant_as<Pair>(from);
    to[0] = pair.x, to[1] = pair.y;
  } else {
    to[0] = load_constant_as<float>(from);
  }
}

template <int vector>
HALOCAST_DEVICE void store_vector(float* to, const float* values) {
  if (vector == 4)
    store_as(to, Quad{values[0], values[1], values[2], values[3]});
  else if (vector == 2)
    store_as(to, Pair{values[0], values[1]});
  else
    to[0] = values[0];
}

// The same for doubles: 2 or 1 of them.
template <int vector>
HALOCAST_DEVICE void load_vector(const double* from, double* to) {
  if (vector == 2) {
    const DoublePair pair = load_as<DoublePair>(from);
    to[0] = pair.x, to[1] = pair.y;
  } else {
    to[0] = from[0];
  }
}

template <int vector>
HALOCAST_DEVICE void load_constant_vector(const double* from, double* to) {
  if (vector == 2) {
    const DoublePair pair = load_constant_as<DoublePair>(from);
    to[0] = pair.x, to[1] = pair.y;
  } else {
    to[0] = load_constant_as<double>(from);
  }
}

template <int vector>
HALOCAST_DEVICE void store_vector(double* to, const double* values) {
  if (vector == 2)
    store_as(to, DoublePair{values[0], values[1]});
  else
    to[0] = values[0];
}

}  // namespace halocast::codec
