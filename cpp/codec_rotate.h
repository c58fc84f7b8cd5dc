// The rotated codec: a row is turned by randomised Hadamard transforms and rounded to the levels of a normal distribution.
// S. Vargaftik et al., EDEN: communication-efficient and robust distributed mean estimation (ICML 2022).
#pragma once

#include "codec.h"
#include "codec_bits.h"
#include "codec_row.h"

namespace halocast::HALOCAST_ISA {
namespace {

struct Rotation {
  std::int64_t dim;
  int log2_window;
  std::int64_t window;
  static constexpr int passes = 3;

  explicit Rotation(std::int64_t row_dim) : dim(row_dim), log2_window(0), window(1) {
    for (; window * 2 <= dim; window *= 2) ++log2_window;
  }

  // Where the window of a pass starts.
  std::int64_t first(int pass) const { return pass == 1 ? dim - window : 0; }
};

inline void hadamard(float* row, std::int64_t size, float scale) {
  for (std::int64_t stride = 1; stride < size; stride *= 2)
    for (std::int64_t block = 0; block < size; block += 2 * stride) {
      float* const low = row + block;
      float* const high = low + stride;
#pragma omp simd
      for (std::int64_t i = 0; i < stride; ++i) {
        const float a = low[i], b = high[i];
        low[i] = a + b;
        high[i] = a - b;
      }
    }
#pragma omp simd
  for (std::int64_t i = 0; i < size; ++i) row[i] *= scale;
}

// Multiplies elements [first, last) by the random signs of a pass.
inline void flip_signs(float* row, std::int64_t first, std::int64_t last, int pass, const RandomStream& stream,
                       std::int64_t node) {
  constexpr std::int64_t elements = 128;  // that one block of random words has signs for
  const std::uint32_t key[2] = {static_cast<std::uint32_t>(stream.seed), static_cast<std::uint32_t>(stream.seed >> 32)};
  for (std::int64_t block = first / elements; block * elements < last; ++block) {
    const std::uint32_t counter[4] = {static_cast<std::uint32_t>(codec::sign_words / 4 * (pass + 1) + block),
                                      static_cast<std::uint32_t>(node), stream.epoch,
                                      stream.tag | (static_cast<std::uint32_t>(node >> 32) & 0xffu)};
    std::uint32_t words[4];
    codec::philox_block(key, counter, words);
    const std::int64_t begin = block * elements > first ? block * elements : first;
    const std::int64_t end = (block + 1) * elements < last ? (block + 1) * elements : last;
    for (std::int64_t j = begin; j < end; ++j) {
      const std::uint32_t sign = words[j % elements / 32] >> (j % 32) << 31;
      row[j] = codec::float_of(codec::bits_of(row[j]) ^ sign);
    }
  }
}

inline void rotate(float* row, const Rotation& r, const RandomStream& stream, std::int64_t node) {
  for (int pass = 0; pass < r.passes; ++pass) {
    flip_signs(row, r.first(pass), r.first(pass) + r.window, pass, stream, node);
    hadamard(row + r.first(pass), r.window, codec::inverse_root_of_power(r.log2_window));
  }
}

inline void rotate_back(float* row, const Rotation& r, const RandomStream& stream, std::int64_t node) {
  for (int pass = r.passes - 1; pass >= 0; --pass) {
    hadamard(row + r.first(pass), r.window, codec::inverse_root_of_power(r.log2_window));
    flip_signs(row, r.first(pass), r.first(pass) + r.window, pass, stream, node);
  }
}

// The sum of term(j) in the order that the wire format prescribes.
template <class Term>
float ordered_sum(std::int64_t dim, const Term& term) {
  float sums[codec::sum_lanes] = {};
  std::int64_t j = 0;
  for (; j + codec::sum_lanes <= dim; j += codec::sum_lanes)
#pragma omp simd
    for (int lane = 0; lane < codec::sum_lanes; ++lane) sums[lane] += term(j + lane);
  for (; j < dim; ++j) sums[j % codec::sum_lanes] += term(j);
  for (int half = codec::sum_lanes / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
  return sums[0];
}

// Out of line: the copy of the row is large, and only rows of this codec should pay for it.
__attribute__((noinline)) inline void pack_rotated(const float* row, const Records& r, std::int64_t node, int width,
                                                   std::uint8_t* record) {
  float rotated[codec::rotated_dim_limit];
  std::memcpy(rotated, row, static_cast<std::size_t>(r.dim) * sizeof(float));
  rotate(rotated, Rotation(r.dim), r.stream, node);
  const float squares = ordered_sum(r.dim, [&](std::int64_t j) { return rotated[j] * rotated[j]; });
  const float root = __builtin_sqrtf(squares / static_cast<float>(r.dim));
  const bool empty = !(squares > 0.0f);
  BitWriter codes(record + 2, width);
  for (std::int64_t j = 0; j < r.dim; ++j) codes.put(empty ? 0 : codec::rotated_code_of(rotated[j], root, width));
  codes.finish();
  const float products = ordered_sum(r.dim, [&](std::int64_t j) {
    return rotated[j] * codec::level_of(codec::rotated_code_of(rotated[j], root, width), width);
  });
  write_u16(record, empty ? 0 : codec::scale_code_nearest(squares / products));
}

template <bool accumulate>
__attribute__((noinline)) void unpack_rotated(const std::uint8_t* record, const Records& r, std::int64_t node,
                                              int width, float* out) {
  float rotated[codec::rotated_dim_limit];
  const float scale = codec::decoded_scale(read_u16(record));
  BitReader codes(record + 2, width);
  for (std::int64_t j = 0; j < r.dim; ++j) rotated[j] = scale * codec::level_of(codes.get(), width);
  rotate_back(rotated, Rotation(r.dim), r.stream, node);
  for (std::int64_t j = 0; j < r.dim; ++j) out[j] = accumulate ? out[j] + rotated[j] : rotated[j];
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
