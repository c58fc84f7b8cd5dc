// Rows of the rotated codec: a warp takes one, which lies in shared memory.
#pragma once

#include "pack.h"
#include "unpack.h"

namespace halocast::codec {

// One warp's shared memory.
struct RotatedMemory {
  float* row;            // [dim]
  std::uint32_t* signs;  // words of random bits, a bit an element
  std::uint8_t* record;  // to be copied to the wire, in its phase
};

constexpr int sign_block_values = 128;  // elements that one block of random words has signs for

HALOCAST_BOTH int rounded_up(int bytes, int multiple) { return (bytes + multiple - 1) / multiple * multiple; }
HALOCAST_BOTH int row_bytes(int dim) { return rounded_up(4 * dim, 16); }
HALOCAST_BOTH int signs_bytes(int dim) { return rounded_up(dim, sign_block_values) / 8; }
HALOCAST_BOTH int rotated_bytes(int dim) {
  return row_bytes(dim) + signs_bytes(dim) + rounded_up(rounded_up(dim, group_values) / 4, piece_bytes) +
         2 * piece_bytes;
}

HALOCAST_DEVICE RotatedMemory rotated_memory(std::uint8_t* memory, int dim) {
  return {reinterpret_cast<float*>(memory), reinterpret_cast<std::uint32_t*>(memory + row_bytes(dim)),
          memory + row_bytes(dim) + signs_bytes(dim)};
}

// The part of a row that one pass transforms.
struct Window {
  int first, size, log2_size;
};

struct Rotation {
  static constexpr int passes = 3;
  int dim, log2_window;

  HALOCAST_DEVICE explicit Rotation(int row_dim) : dim(row_dim), log2_window(0) {
    while (2 << log2_window <= dim) ++log2_window;
  }

  HALOCAST_DEVICE Window window(int pass) const {
    return {pass == 1 ? dim - (1 << log2_window) : 0, 1 << log2_window, log2_window};
  }
};

HALOCAST_DEVICE void flip_signs(const Warp& warp, const RotatedMemory& memory, const Window& window, int pass,
                                const Records& records, const RoundKeys& keys, std::int64_t node) {
  const int end = window.first + window.size;
  warp.each([&](int lane) {
    for (int block = window.first / sign_block_values + lane; block * sign_block_values < end; block += warp_lanes)
      random_block(records.stream, keys, node, static_cast<std::uint32_t>(sign_words / 4 * (pass + 1) + block),
                   memory.signs + 4 * block);
  });
  warp.each([&](int lane) {
    for (int j = window.first + lane; j < end; j += warp_lanes)
      memory.row[j] = float_of(bits_of(memory.row[j]) ^ memory.signs[j / 32] >> (j % 32) << 31);
  });
}

// Butterflies of strides 2^log2_stride to 2^(log2_stride + stages - 1), in registers.
template <int stages>
HALOCAST_DEVICE void butterflies(float* values, int size, int log2_stride, int lane) {
  constexpr int points = 1 << stages;
  for (int i = lane; i < size >> stages; i += warp_lanes) {
    float* const from = values + (i >> log2_stride << (log2_stride + stages)) + (i & ((1 << log2_stride) - 1));
    float point[points];
#pragma unroll
    for (int p = 0; p < points; ++p) point[p] = from[p << log2_stride];
#pragma unroll
    for (int bit = 1; bit < points; bit *= 2)
#pragma unroll
      for (int p = 0; p < points; ++p)
        if ((p & bit) == 0) {
          const float a = point[p], b = point[p | bit];
          point[p] = a + b;
          point[p | bit] = a - b;
        }
#pragma unroll
    for (int p = 0; p < points; ++p) from[p << log2_stride] = point[p];
  }
}

HALOCAST_DEVICE void hadamard(const Warp& warp, float* values, int log2_size) {
  const int size = 1 << log2_size;
  int stage = 0;
  for (; stage + 3 <= log2_size; stage += 3) warp.each([&](int lane) { butterflies<3>(values, size, stage, lane); });
  for (; stage < log2_size; ++stage) warp.each([&](int lane) { butterflies<1>(values, size, stage, lane); });
  const float scale = inverse_root_of_power(log2_size);
  warp.each([&](int lane) {
    for (int j = lane; j < size; j += warp_lanes) values[j] *= scale;
  });
}

HALOCAST_DEVICE void rotate(const Warp& warp, const RotatedMemory& memory, const Records& records,
                            const RoundKeys& keys, std::int64_t node) {
  const Rotation rotation(static_cast<int>(records.dim));
  for (int pass = 0; pass < rotation.passes; ++pass) {
    const Window window = rotation.window(pass);
    flip_signs(warp, memory, window, pass, records, keys, node);
    hadamard(warp, memory.row + window.first, window.log2_size);
  }
}

HALOCAST_DEVICE void rotate_back(const Warp& warp, const RotatedMemory& memory, const Records& records,
                                 const RoundKeys& keys, std::int64_t node) {
  const Rotation rotation(static_cast<int>(records.dim));
  for (int pass = rotation.passes - 1; pass >= 0; --pass) {
    const Window window = rotation.window(pass);
    hadamard(warp, memory.row + window.first, window.log2_size);
    flip_signs(warp, memory, window, pass, records, keys, node);
  }
}

// The sum of term(j), in the order that the wire format prescribes. Both halves of the warp compute it.
template <class Term>
HALOCAST_DEVICE float ordered_sum(const Warp& warp, int dim, const Term& term) {
  PerLane<float> sums;
  warp.each([&](int lane) {
    sums[lane] = 0.0f;
    for (int j = lane % sum_lanes; j < dim; j += sum_lanes) sums[lane] += term(j);
  });
#pragma unroll
  for (int distance = sum_lanes / 2; distance > 0; distance /= 2)
    warp.combine(sums, distance, [](float a, float b) { return a + b; });
  return sums[0];
}

// Packs a row if it is of the rotated codec; pack_rows has written its range.
HALOCAST_DEVICE void pack_rotated(const Warp& warp, const PackJob& job, std::int64_t number,
                                  const RotatedMemory& memory) {
  const Records& records = job.pack.records;
  const auto dim = static_cast<int>(records.dim);
  const int width = load_constant_as<std::uint8_t>(records.widths + number);
  if (!is_rotated(records, width)) return;
  const float* const values = job.pack.in + row_of(job.pack.index, number) * job.pack.in_stride;
  const std::int64_t node = load_constant_as<std::int64_t>(records.nodes + number);

  PerLane<bool> is_bad;
  warp.each([&](int lane) {
    is_bad[lane] = false;
    for (int j = lane; j < dim; j += warp_lanes) {
      const float x = load_constant_as<float>(values + j);
      memory.row[j] = x;
      is_bad[lane] = is_bad[lane] || !lies_below(x, x, rotated_magnitude_limit) || (records.one_sided && x < 0.0f);
    }
  });
  if (warp.any(is_bad)) {
    warp.each([&](int lane) {
      if (lane == 0) lower(job.first_bad, number);
    });
    return;
  }

  rotate(warp, memory, records, job.keys, node);
  const float squares = ordered_sum(warp, dim, [&](int j) { return memory.row[j] * memory.row[j]; });
  const float root = square_root(squares / static_cast<float>(dim));
  const bool is_empty = !(squares > 0.0f);
  const float products = ordered_sum(
      warp, dim, [&](int j) { return memory.row[j] * level_of(rotated_code_of(memory.row[j], root, width), width); });

  std::uint8_t* const record = job.pack.wire + load_constant_as<std::int64_t>(records.offsets + number);
  const int start = phase_of(record);
  warp.each([&](int lane) {
    if (lane == 0)
      stage_u16(memory.record + start,
                is_empty ? static_cast<std::uint16_t>(0) : scale_code_nearest(squares / products));
    for (int first = lane * group_values; first < dim; first += warp_lanes * group_values) {
      const int present = dim - first < group_values ? dim - first : group_values;
      std::uint32_t codes = 0;
      for (int j = 0; j < present && !is_empty; ++j)
        codes |= rotated_code_of(memory.row[first + j], root, width) << (j * width);
      stage_codes(memory.record, start + 2 + first / group_values * width, codes, (present * width + 7) / 8);
    }
  });
  warp.each([&](int lane) { copy_to_wire(record, memory.record + start, 2 + (dim * width + 7) / 8, lane); });
}

// Unpacks a row if it is of the rotated codec; unpack_row reports a record outside the wire buffer.
HALOCAST_DEVICE void unpack_rotated(const Warp& warp, const UnpackJob& job, std::int64_t number,
                                    const RotatedMemory& memory) {
  const Unpack& unpack = job.unpack;
  const Records& records = unpack.records;
  const auto dim = static_cast<int>(records.dim);
  const int width = load_constant_as<std::uint8_t>(records.widths + number);
  const std::int64_t offset = load_constant_as<std::int64_t>(records.offsets + number);
  const std::int64_t bytes = record_bytes(width, records.dim, records.one_sided, true);
  if (!is_rotated(records, width) || !lies_within(unpack, offset, bytes, width)) return;
  float* const out = unpack.out + row_of(unpack.index, number) * unpack.out_stride;
  const std::int64_t node = load_constant_as<std::int64_t>(records.nodes + number);

  const WireReader<true> reader(unpack.wire + offset, unpack.wire + unpack.wire_bytes);
  const float scale = decoded_scale(static_cast<std::uint16_t>(reader.load(0).bits()));
  const std::uint32_t mask = (1u << width) - 1;
  warp.each([&](int lane) {
    for (int j = lane; j < dim; j += warp_lanes) {
      const std::uint32_t code = reader.load(static_cast<std::uint32_t>(16 + j * width)).bits() & mask;
      memory.row[j] = scale * level_of(code, width);
    }
  });
  rotate_back(warp, memory, records, job.keys, node);
  warp.each([&](int lane) {
    for (int j = lane; j < dim; j += warp_lanes) out[j] = unpack.accumulate ? out[j] + memory.row[j] : memory.row[j];
  });
}

}  // namespace halocast::codec
