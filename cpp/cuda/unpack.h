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
HALOCAST_DEVICE bool lies_within(const Unpack& unpack, std::int64_t offset, std::int64_t bytes, int width) {
  return is_width(width) && offset >= 0 && bytes <= unpack.wire_bytes && offset <= unpack.wire_bytes - bytes;
}

// What the codes of a record stand for.
struct Scale {
  float offset, scale;
};

HALOCAST_DEVICE Scale scale_of(std::uint32_t side, bool one_sided) {
  if (one_sided) return {0.0f, decoded_scale(static_cast<std::uint16_t>(side))};
  return {decoded_offset(static_cast<std::uint16_t>(side)), decoded_scale(static_cast<std::uint16_t>(side >> 16))};
}

// One lane's share of a row of width 16 or 32.
template <int lanes, int vector, class Reader>
HALOCAST_DEVICE void decode_plain(const Reader& reader, int units, int width, float* out, int lane, bool accumulate) {
  const auto bits = static_cast<std::uint32_t>(width);
#pragma unroll 1
  for (int unit = lane; unit < units; unit += lanes) {
    float values[vector];
#pragma unroll
    for (int j = 0; j < vector; ++j) {
      const std::uint32_t word = reader.load(static_cast<std::uint32_t>(unit * vector + j) * bits).bits();
      values[j] = width == 32 ? float_of(word) : float_of_bfloat16(static_cast<std::uint16_t>(word));
    }
    put_vector<vector>(out + unit * vector, values, accumulate);
  }
}

// One lane's share of a row of codes: units of `vector` of them, some of which are loaded before
// anything, the scale too, is waited for.
template <int lanes, int vector, class Reader>
HALOCAST_DEVICE void decode_codes(const Reader& reader, const Records& records, int units, int width, float* out,
                                  int lane, bool accumulate) {
  const std::uint32_t side_bits = records.one_sided ? 16 : 32;
  const std::uint32_t mask = (1u << width) - 1;
  const auto bits = static_cast<std::uint32_t>(vector * width);
#pragma unroll 1
  for (int first = lane; first < units; first += lanes * units_at_once) {
    typename Reader::Words words[units_at_once];
#pragma unroll
    for (int i = 0; i < units_at_once; ++i) {
      const int unit = first + i * lanes;
      words[i] = reader.load(side_bits + static_cast<std::uint32_t>(unit < units ? unit : first) * bits);
    }
    const Scale scale = scale_of(reader.load(0).bits(), records.one_sided);
#pragma unroll
    for (int i = 0; i < units_at_once; ++i) {
      const int unit = first + i * lanes;
      if (unit >= units) break;
      std::uint32_t codes = words[i].bits();
      float values[vector];
#pragma unroll
      for (int j = 0; j < vector; ++j, codes >>= width) values[j] = decode(scale.offset, scale.scale, codes & mask);
      put_vector<vector>(out + unit * vector, values, accumulate);
    }
  }
}

// One lane's share of a row whose record lies within the wire buffer.
template <int lanes, int vector, bool guarded>
HALOCAST_DEVICE void decode_row(const Unpack& unpack, std::int64_t number, std::int64_t offset, int width, int lane) {
  const WireReader<guarded> reader(unpack.wire + offset, unpack.wire + unpack.wire_bytes);
  const auto units = static_cast<int>(unpack.records.dim) / vector;
  float* const out = unpack.out + row_of(unpack.index, number) * unpack.out_stride;
  if (width >= 16)
    decode_plain<lanes, vector>(reader, units, width, out, lane, unpack.accumulate);
  else
    decode_codes<lanes, vector>(reader, unpack.records, units, width, out, lane, unpack.accumulate);
}

// One lane's share of a row.
template <int lanes, int vector>
HALOCAST_DEVICE void unpack_row(const UnpackJob& job, std::int64_t number, int lane) {
  const Unpack& unpack = job.unpack;
  const Records& records = unpack.records;
  if (number >= records.count) return;
  const int width = load_constant_as<std::uint8_t>(records.widths + number);
  const std::int64_t offset = load_constant_as<std::int64_t>(records.offsets + number);
  const bool is_another_kernels = is_rotated(records, width);
  const std::int64_t bytes = record_bytes(width, records.dim, records.one_sided, is_another_kernels);
  if (!lies_within(unpack, offset, bytes, width)) {
    if (lane == 0) lower(job.first_bad, number);
  } else if (!is_another_kernels) {
    if (offset + bytes + read_ahead_bytes <= unpack.wire_bytes)
      decode_row<lanes, vector, false>(unpack, number, offset, width, lane);
    else
      decode_row<lanes, vector, true>(unpack, number, offset, width, lane);
  }
}

}  // namespace halocast::codec
