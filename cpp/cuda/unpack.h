// Unpacking: lanes that share a row take turns at its units of `vector` elements, so that they write memory in order.
#pragma once

#include "wire.h"

namespace halocast::codec {

template <int vector>
HALOCAST_DEVICE void put_vector(float* to, const float* values, bool accumulate) {
  if (vector == 4) {
    Quad quad{values[0], values[1], values[2], values[3]};
    if (accumulate) {
      const Quad there = load_as<Quad>(to);
      quad = Quad{there.x + quad.x, there.y + quad.y, there.z + quad.z, there.w + quad.w};
    }
    store_as(to, quad);
  } else if (vector == 2) {
    Pair pair{values[0], values[1]};
    if (accumulate) {
      const Pair there = load_as<Pair>(to);
      pair = Pair{there.x + pair.x, there.y + pair.y};
    }
    store_as(to, pair);
  } else {
    to[0] = accumulate ? to[0] + values[0] : values[0];
  }
}

// False where a record would leave the wire buffer, and for a width that does not exist.
HALOCAST_DEVICE bool lies_within(const UnpackJob& job, std::int64_t offset, int width) {
  if (!is_width(width)) return false;
  const Records& records = job.unpack.records;
  const std::int64_t bytes = record_bytes(width, records.dim, records.one_sided, is_rotated(records, width));
  return offset >= 0 && bytes <= job.unpack.wire_bytes && offset <= job.unpack.wire_bytes - bytes;
}

// Calls put(unit, bits) for each of a lane's units: of vector * width bits, at most 32, of which those above the codes are
// unspecified. Loads go ahead of what is done with them.
template <int vector, class Put>
HALOCAST_DEVICE void for_each_unit(const WireReader& codes, int units, int lane, int lanes, int width, const Put& put) {
  const auto bits = static_cast<std::uint32_t>(vector * width);
  for (int first = lane; first < units; first += lanes * units_at_once) {
    std::uint32_t loaded[units_at_once];
#pragma unroll
    for (int i = 0; i < units_at_once; ++i)
      if (first + i * lanes < units) loaded[i] = codes.bits(static_cast<std::uint32_t>(first + i * lanes) * bits, bits);
#pragma unroll
    for (int i = 0; i < units_at_once; ++i)
      if (first + i * lanes < units) put(first + i * lanes, loaded[i]);
  }
}

// One lane's share of one row.
template <int vector>
HALOCAST_DEVICE void unpack_row(const UnpackJob& job, std::int64_t number, int lane, int lanes) {
  const Unpack& unpack = job.unpack;
  const Records& records = unpack.records;
  if (number >= records.count) return;
  const int width = load_constant_as<std::uint8_t>(records.widths + number);
  const std::int64_t offset = load_constant_as<std::int64_t>(records.offsets + number);
  if (!lies_within(job, offset, width)) {
    if (lane == 0) lower(job.first_bad, number);
    return;
  }
  if (is_rotated(records, width)) return;  // another kernel's

  float* const out = unpack.out + row_of(unpack.index, number) * unpack.out_stride;
  const auto units = static_cast<int>(records.dim / vector);
  const std::uint8_t* const end = unpack.wire + unpack.wire_bytes;
  const WireReader record(unpack.wire + offset, end);
  float values[vector];
  if (width == 32) {
    for (int unit = lane; unit < units; unit += lanes) {
      for (int j = 0; j < vector; ++j) values[j] = float_of(record.bits(static_cast<std::uint32_t>(unit * vector + j) * 32u, 32));
      put_vector<vector>(out + unit * vector, values, unpack.accumulate);
    }
  } else if (width == 16) {
    for (int unit = lane; unit < units; unit += lanes) {
      for (int j = 0; j < vector; ++j)
        values[j] = float_of_bfloat16(
            static_cast<std::uint16_t>(record.bits(static_cast<std::uint32_t>(unit * vector + j) * 16u, 16)));
      put_vector<vector>(out + unit * vector, values, unpack.accumulate);
    }
  } else {
    const std::uint32_t side = record.bits(0, records.one_sided ? 16 : 32);
    const float base = records.one_sided ? 0.0f : decoded_offset(static_cast<std::uint16_t>(side));
    const float scale = decoded_scale(static_cast<std::uint16_t>(records.one_sided ? side : side >> 16));
    const std::uint32_t mask = (1u << width) - 1;
    const WireReader codes(unpack.wire + offset + (records.one_sided ? 2 : 4), end);
    for_each_unit<vector>(codes, units, lane, lanes, width, [&](int unit, std::uint32_t bits) {
      for (int j = 0; j < vector; ++j, bits >>= width) values[j] = decode(base, scale, bits & mask);
      put_vector<vector>(out + unit * vector, values, unpack.accumulate);
    });
  }
}

}  // namespace halocast::codec
