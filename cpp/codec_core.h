// One row's arithmetic of the wire format (docs/wire-format.md): the same numbers on every processor and on CUDA.
//
// Compile with fused multiply-adds switched off (-ffp-contract=off, --fmad=false): every operation here rounds once.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define HALOCAST_BOTH static __host__ __device__ __forceinline__
#else
#define HALOCAST_BOTH static inline
#endif

namespace halocast::codec {

constexpr std::uint32_t magic = 0x31514348u;  // "HCQ1"
constexpr int header_bytes = 32;
constexpr float fraction_units = 65536.0f;  // a step of the grid, in units of the 16 random bits
constexpr std::uint32_t nearest_bits = 32768u;
constexpr std::uint32_t magnitude_limit = 0x7e800000u;          // 2^126: differences of two values below it are finite
constexpr std::uint32_t rotated_magnitude_limit = 0x5b800000u;  // 2^56: 32,767 squares of values below it can be summed
constexpr std::uint32_t smallest_scale = 0x08000000u;           // 2^-111: fraction_units divided by it is finite

// The rotated codec: levels for unit variance, in the order of their codes, and the positive threshold of the 2-bit ones.
constexpr int rotated_width_limit = 2;
constexpr int rotated_dim_limit = 32768;
constexpr int sign_words = 4096;  // pass p takes its signs from this many times p + 1 on
constexpr int sum_lanes = 16;     // accumulators of one sum
constexpr float level_of_1_bit = 0.7978845608f;
constexpr float inner_level_of_2_bits = 0.4527800398f;
constexpr float outer_level_of_2_bits = 1.510417608f;
constexpr float threshold_of_2_bits = 0.9815988f;

HALOCAST_BOTH std::uint32_t bits_of(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

HALOCAST_BOTH float float_of(std::uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// Width 16: to nearest, ties to even. The value is finite.
HALOCAST_BOTH std::uint16_t bfloat16_of(float value) {
  const std::uint32_t bits = bits_of(value);
  return static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

HALOCAST_BOTH float float_of_bfloat16(std::uint16_t code) { return float_of(static_cast<std::uint32_t>(code) << 16); }

// bfloat16 towards minus infinity; both zeros give +0, since which of them a minimum is depends on the order.
HALOCAST_BOTH std::uint16_t offset_code(float minimum) {
  if (minimum == 0.0f) return 0;
  const std::uint32_t bits = bits_of(minimum);
  const bool away_from_zero = (bits >> 31) != 0 && (bits & 0xffffu) != 0;
  return static_cast<std::uint16_t>((bits >> 16) + (away_from_zero ? 1u : 0u));
}

HALOCAST_BOTH float decoded_offset(std::uint16_t code) { return float_of_bfloat16(code); }

// Eight bits of exponent and eight of mantissa, no sign.
HALOCAST_BOTH std::uint16_t scale_code_up(float scale) {
  if (!(scale > 0.0f)) return 0;
  const std::uint32_t bits = bits_of(scale);
  return static_cast<std::uint16_t>(bits < smallest_scale ? smallest_scale >> 15 : (bits + 0x7fffu) >> 15);
}

HALOCAST_BOTH std::uint16_t scale_code_nearest(float scale) {
  if (!(scale > 0.0f)) return 0;
  const std::uint32_t bits = bits_of(scale);
  return static_cast<std::uint16_t>((bits + 0x3fffu + (bits >> 15 & 1u)) >> 15);
}

HALOCAST_BOTH float decoded_scale(std::uint16_t code) { return float_of(static_cast<std::uint32_t>(code) << 15); }

// The grid that a row is rounded to.
struct Grid {
  float offset;
  float inverse;  // fraction units in 1
  std::uint16_t offset_code;
  std::uint16_t scale_code;
};

// minimum is not read where the row is one-sided.
HALOCAST_BOTH Grid grid_of(float minimum, float maximum, int width, bool one_sided) {
  Grid grid;
  grid.offset_code = one_sided ? static_cast<std::uint16_t>(0) : offset_code(minimum);
  grid.offset = decoded_offset(grid.offset_code);
  const auto steps = static_cast<float>((1 << width) - 1);
  grid.scale_code = scale_code_up((maximum - grid.offset) / steps);
  const float scale = decoded_scale(grid.scale_code);
  grid.inverse = scale > 0.0f ? fraction_units / scale : 0.0f;
  return grid;
}

// fraction = value in fraction units, rounded to nearest even; random: 16 bits.
HALOCAST_BOTH std::uint32_t code_of(std::int32_t fraction, std::uint32_t random, std::uint32_t top) {
  const std::uint32_t code = (static_cast<std::uint32_t>(fraction) + random) >> 16;
  return code < top ? code : top;
}

HALOCAST_BOTH float decode(float offset, float scale, std::uint32_t code) {
  return offset + scale * static_cast<float>(code);
}

// The level of a code of the rotated codec, for unit variance.
HALOCAST_BOTH float level_of(std::uint32_t code, int width) {
  if (width == 1) return code != 0 ? level_of_1_bit : -level_of_1_bit;
  const float level = code == 0 || code == 3 ? outer_level_of_2_bits : inner_level_of_2_bits;
  return code >= 2 ? level : -level;
}

// root: of the mean square of the rotated row.
HALOCAST_BOTH std::uint32_t rotated_code_of(float rotated, float root, int width) {
  if (width == 1) return rotated >= 0.0f ? 1u : 0u;
  const float threshold = threshold_of_2_bits * root;
  return (rotated >= -threshold ? 1u : 0u) + (rotated >= 0.0f ? 1u : 0u) + (rotated >= threshold ? 1u : 0u);
}

// 1 / sqrt(2^log2_size), rounded to nearest.
HALOCAST_BOTH float inverse_root_of_power(int log2_size) {
  const float power = float_of(static_cast<std::uint32_t>(127 - log2_size / 2) << 23);
  return (log2_size & 1) != 0 ? power * 0.70710678118654752f : power;
}

HALOCAST_BOTH bool is_coded(int width) { return (width >= 1 && width <= 6) || width == 8; }
HALOCAST_BOTH bool is_width(int width) { return is_coded(width) || width == 16 || width == 32; }

HALOCAST_BOTH std::int64_t record_bytes(int width, std::int64_t dim, bool one_sided, bool rotated) {
  if (width > 8) return dim * width / 8;
  return (one_sided || (rotated && width <= 2) ? 2 : 4) + (dim * width + 7) / 8;
}

// One block of Philox4x32-10 (cpp/philox.h says what the counter is).
HALOCAST_BOTH void philox_block(const std::uint32_t key[2], const std::uint32_t counter[4], std::uint32_t words[4]) {
  std::uint32_t key0 = key[0], key1 = key[1];
  std::uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = static_cast<std::uint64_t>(c0) * 0xD2511F53u;
    const std::uint64_t product1 = static_cast<std::uint64_t>(c2) * 0xCD9E8D57u;
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<std::uint32_t>(product1);
    c3 = static_cast<std::uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

}  // namespace halocast::codec
