// One row of the codec with AVX2 and BMI2: 32 elements at a time.
#pragma once

#include <immintrin.h>

#include "codec_row.h"

namespace halocast::HALOCAST_ISA {
namespace {

inline __m256i first_of_eight(std::int64_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first count (up to 8) floats, zeros behind them.
inline __m256 load_floats(const float* from, std::int64_t count) {
  if (count >= 8) return _mm256_loadu_ps(from);
  return count > 0 ? _mm256_maskload_ps(from, first_of_eight(count)) : _mm256_setzero_ps();
}

struct UnsignedMax {
  static __m256i of(__m256i a, __m256i b) { return _mm256_max_epu32(a, b); }
  static __m128i of(__m128i a, __m128i b) { return _mm_max_epu32(a, b); }
};
struct UnsignedMin {
  static __m256i of(__m256i a, __m256i b) { return _mm256_min_epu32(a, b); }
  static __m128i of(__m128i a, __m128i b) { return _mm_min_epu32(a, b); }
};
struct SignedMax {
  static __m256i of(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
  static __m128i of(__m128i a, __m128i b) { return _mm_max_epi32(a, b); }
};

template <class Extreme>
inline std::uint32_t across(__m256i v) {
  __m128i half = Extreme::of(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  half = Extreme::of(half, _mm_shuffle_epi32(half, 0x4e));
  half = Extreme::of(half, _mm_shuffle_epi32(half, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(half));
}

// The extremes of some rows, found as find_range does. Returns false if there may be a NaN or, where the rows should have
// no negative value, one of these: what is written is then of no use.
template <bool non_negative>
inline bool find_ranges(const float* const* rows, int count, std::int64_t dim, GroupRanges& out) {
  std::uint32_t beyond = 0;
  for (int i = 0; i < count; ++i) {
    const float* const row = rows[i];
    // The first value is as good as any to fill up the last register with.
    const __m256i filling = _mm256_set1_epi32(static_cast<int>(codec::bits_of(row[0])));
    __m256i most = filling, least = filling, top = filling;
    for (std::int64_t j = 0; j < dim; j += 8) {
      __m256i v;
      if (j + 8 <= dim) {
        v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + j));
      } else {
        const __m256i lanes = first_of_eight(dim - j);
        v = _mm256_blendv_epi8(filling, _mm256_castps_si256(_mm256_maskload_ps(row + j, lanes)), lanes);
      }
      most = UnsignedMax::of(most, v);
      if constexpr (!non_negative) {
        least = UnsignedMin::of(least, v);
        top = SignedMax::of(top, v);
      }
    }
    const std::uint32_t unsigned_max = across<UnsignedMax>(most);
    if constexpr (non_negative) {
      out.minimum[i] = 0.0f;
      out.maximum[i] = codec::float_of(unsigned_max);
      beyond |= unsigned_max >= infinity_bits;
    } else {
      const std::uint32_t unsigned_min = across<UnsignedMin>(least), signed_max = across<SignedMax>(top);
      out.minimum[i] = codec::float_of(unsigned_max >= sign_bit ? unsigned_max : unsigned_min);
      out.maximum[i] = codec::float_of(signed_max < sign_bit ? signed_max : unsigned_min);
      beyond |= unsigned_max >= (infinity_bits | sign_bit) || (signed_max < sign_bit && signed_max >= infinity_bits);
    }
  }
  return beyond == 0;
}

template <int width, bool one_sided, bool stochastic>
inline void quantise(const float* in, std::int64_t count, float offset, float inverse, const std::uint16_t* random,
                     std::uint8_t* out) {
  const __m256 low = _mm256_set1_ps(offset);
  const __m256 units = _mm256_set1_ps(inverse);
  for (std::int64_t first = 0; first < count; first += 32, out += 4 * width) {
    const std::int64_t left = count - first;
    __m256i words[4];
    for (int i = 0; i < 4; ++i) {
      __m256 x = load_floats(in + first + 8 * i, left - 8 * i);
      if constexpr (!one_sided) x = x - low;
      // Rounds to nearest even, the mode every thread starts in.
      __m256i fraction = _mm256_cvtps_epi32(x * units);
      if constexpr (stochastic)
        fraction = _mm256_add_epi32(fraction, _mm256_cvtepu16_epi32(_mm_loadu_si128(
                                                  reinterpret_cast<const __m128i*>(random + first + 8 * i))));
      else
        fraction = _mm256_add_epi32(fraction, _mm256_set1_epi32(codec::nearest_bits));
      words[i] = _mm256_srli_epi32(fraction, 16);
    }
    // Packing saturates, so 256 becomes 255, and takes the 128-bit lanes one by one: their order is mended afterwards.
    const __m256i bytes =
        _mm256_packus_epi16(_mm256_packus_epi32(words[0], words[1]), _mm256_packus_epi32(words[2], words[3]));
    __m256i codes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    if constexpr (width < 8) codes = _mm256_min_epu8(codes, _mm256_set1_epi8((1 << width) - 1));
    if (left < 32) {
      const __m256i places = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,
                                              21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
      codes = _mm256_and_si256(codes, _mm256_cmpgt_epi8(_mm256_set1_epi8(static_cast<char>(left)), places));
    }
    alignas(32) std::uint8_t bytewise[32];
    if constexpr (width == 8) {
      if (left >= 32) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), codes);
      } else {
        _mm256_store_si256(reinterpret_cast<__m256i*>(bytewise), codes);
        std::memcpy(out, bytewise, static_cast<std::size_t>(left));
      }
    } else if constexpr (width == 1) {
      const auto bits = static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(codes, 7)));
      write_word(out, bits, left < 32 ? stream_bytes(left, width) : 4);
    } else {
      _mm256_store_si256(reinterpret_cast<__m256i*>(bytewise), codes);
      if (left < 32)
        write_codes<width>(bytewise, left, out);
      else
        write_codes<width>(bytewise, 32, out);  // of a known length: the compiler unrolls it
    }
  }
}

// Eight codes, from the lowest bits of a word, as 32-bit numbers.
template <int width>
inline __m256i spread(std::uint64_t stream) {
  if constexpr (width < 8) stream = expand8<width>(stream);
  return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(stream)));
}

template <int width, bool one_sided, bool accumulate>
inline void dequantise(const std::uint8_t* in, std::int64_t count, float offset, float scale, float* out) {
  const __m256 low = _mm256_set1_ps(offset);
  const __m256 step = _mm256_set1_ps(scale);
  std::int64_t bytes = stream_bytes(count, width);
  for (std::int64_t first = 0; first < count; first += 8, in += width, bytes -= width) {
    const std::uint64_t stream = read_word(in, bytes < 8 ? bytes : 8);
    __m256 value = step * _mm256_cvtepi32_ps(spread<width>(stream));
    if constexpr (!one_sided) value = low + value;
    if (count - first >= 8) {
      if constexpr (accumulate) value = _mm256_loadu_ps(out + first) + value;
      _mm256_storeu_ps(out + first, value);
    } else {
      const __m256i lanes = first_of_eight(count - first);
      if constexpr (accumulate) value = _mm256_maskload_ps(out + first, lanes) + value;
      _mm256_maskstore_ps(out + first, lanes, value);
    }
  }
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
