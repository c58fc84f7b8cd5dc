// Unpacking: lanes that share a row take turns at its units of `vector` elements, so that they write memory in order.
#pragma once

#include "rows.h"
#include "wire.h"

namespace halocast::codec {

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
template <int lanes, int vector, bool adding, class Reader>
HALOCAST_DEVICE void decode_plain(const Reader& reader, int units, int width, float* out, int lane) {
  const auto bits = static_cast<std::uint32_t>(width);
#pragma unroll 1
  for (int unit = lane; unit < units; unit += lanes) {
    float values[vector], there[vector];
    if (adding) load_vector<vector>(out + unit * vector, there);
#pragma unroll
    for (int j = 0; j < vector; ++j) {
      const std::uint32_t word = reader.load(static_cast<std::uint32_t>(unit * vector + j) * bits).bits();
      values[j] = width == 32 ? float_of(word) : float_of_bfloat16(static_cast<std::uint16_t>(word));
      if (adding) values[j] = there[j] + values[j];
    }
    store_vector<vector>(out + unit * vector, values);
  }
}

// One lane's share of a row of codes: units of `vector` of them. Some units, the scale, and what is added to are loaded
// before any is waited for.
template <int lanes, int vector, bool adding, class Reader>
HALOCAST_DEVICE void decode_codes(const Reader& reader, bool one_sided, int units, int width, float* out, int lane) {
  const std::uint32_t side_bits = one_sided ? 16 : 32;
  const std::uint32_t mask = (1u << width) - 1;
  const auto bits = static_cast<std::uint32_t>(vector * width);
#pragma unroll 1
  for (int first = lane; first < units; first += lanes * units_at_once) {
    typename Reader::Words words[units_at_once];
    float there[units_at_once][vector];
#pragma unroll
    for (int i = 0; i < units_at_once; ++i) {
      const int unit = first + i * lanes < units ? first + i * lanes : first;
      words[i] = reader.load(side_bits + static_cast<std::uint32_t>(unit) * bits);
      if (adding) load_vector<vector>(out + unit * vector, there[i]);
    }
    const Scale scale = scale_of(reader.load(0).bits(), one_sided);
#pragma unroll
    for (int i = 0; i < units_at_once; ++i) {
      const int unit = first + i * lanes;
      if (i > 0 && unit >= units) break;  // no branch before the first: the loads above would be put after it
      std::uint32_t codes = words[i].bits();
      float values[vector];
#pragma unroll
      for (int j = 0; j < vector; ++j, codes >>= width) {
        values[j] = decode(scale.offset, scale.scale, codes & mask);
        if (adding) values[j] = there[i][j] + values[j];
      }
      store_vector<vector>(out + unit * vector, values);
    }
  }
}

// One lane's share of a row whose record lies within the wire buffer.
template <int lanes, int vector, bool adding, bool guarded>
HALOCAST_DEVICE void decode_row(const Unpack& unpack, std::int64_t number, std::int64_t offset, int width, int lane) {
  const WireReader<guarded> reader(unpack.wire + offset, unpack.wire + unpack.wire_bytes);
  const auto units = static_cast<int>(unpack.records.dim) / vector;
  float* const out = unpack.out + row_of(unpack.index, number) * unpack.out_stride;
  if (width >= 16)
    decode_plain<lanes, vector, adding>(reader, units, width, out, lane);
  else
    decode_codes<lanes, vector, adding>(reader, unpack.records.one_sided, units, width, out, lane);
}

// One lane's share of a row. adding: to what is there.
template <int lanes, int vector, bool adding>
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
      decode_row<lanes, vector, adding, false>(unpack, number, offset, width, lane);
    else
      decode_row<lanes, vector, adding, true>(unpack, number, offset, width, lane);
  }
}

}  // namespace halocast::codec
