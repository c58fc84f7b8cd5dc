// One row of the codec with AVX-512: 64 elements at a time.
#pragma once

#include <immintrin.h>

#include "codec_row.h"

namespace halocast::HALOCAST_ISA {
namespace {

// (Zero-masked intrinsics with all lanes chosen avoid a false warning of gcc 12, bug 105593.)
constexpr __mmask16 all16 = 0xffff;
constexpr __mmask8 all8 = 0xff;

inline __mmask16 lanes16(std::int64_t count) { return static_cast<__mmask16>((1u << count) - 1); }
inline __mmask64 lanes64(std::int64_t count) { return count < 64 ? (1ull << count) - 1 : ~0ull; }

struct BitMax {
  static __m512 of(__m512 a, __m512 b) {
    return _mm512_castsi512_ps(_mm512_maskz_max_epu32(all16, _mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};
struct Max {
  static __m512 of(__m512 a, __m512 b) { return _mm512_maskz_max_ps(all16, a, b); }
};
struct Min {
  static __m512 of(__m512 a, __m512 b) { return _mm512_maskz_min_ps(all16, a, b); }
};

// The extreme of each register, twice. A tree in which every step halves the registers.
template <class Extreme>
inline __m512 across(const __m512 v[group_rows]) {
  __m512 halves[4], quarters[2];
  for (int i = 0; i < 4; ++i)
    halves[i] = Extreme::of(_mm512_maskz_shuffle_f32x4(all16, v[2 * i], v[2 * i + 1], 0x44),
                            _mm512_maskz_shuffle_f32x4(all16, v[2 * i], v[2 * i + 1], 0xee));
  for (int i = 0; i < 2; ++i)
    quarters[i] = Extreme::of(_mm512_maskz_shuffle_f32x4(all16, halves[2 * i], halves[2 * i + 1], 0x88),
                              _mm512_maskz_shuffle_f32x4(all16, halves[2 * i], halves[2 * i + 1], 0xdd));
  // Each 128-bit lane i now has four candidates of row i, or of row i + 4 in the second register.
  const __m512 pairs = Extreme::of(_mm512_maskz_shuffle_ps(all16, quarters[0], quarters[1], 0x44),
                                   _mm512_maskz_shuffle_ps(all16, quarters[0], quarters[1], 0xee));
  const __m512 single = Extreme::of(pairs, _mm512_maskz_permute_ps(all16, pairs, 0xb1));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 2, 6, 10, 14, 0, 4, 8, 12, 2, 6, 10, 14);
  return _mm512_maskz_permutexvar_ps(all16, order, single);
}

// The last 16 values of a row, or all of a shorter one with zeros behind them. (A load of the end alone, the other lanes
// masked out, would wait for the cache line behind the row.)
inline __m512 load_last(const float* row, std::int64_t dim) {
  return dim < 16 ? _mm512_maskz_loadu_ps(lanes16(dim), row) : _mm512_loadu_ps(row + dim - 16);
}

// The extremes of some rows. Returns false if there may be a NaN or, where the rows should have no negative value, one of
// these: what is written is then of no use.
template <bool non_negative>
inline bool find_ranges(const float* const* rows, int count, std::int64_t dim, GroupRanges& out) {
  const __mmask16 rest = lanes16(dim % 16);
  __m512 most[group_rows], least[group_rows];
  for (int i = count; i < group_rows; ++i) most[i] = least[i] = _mm512_setzero_ps();
  if constexpr (non_negative) {
    // One maximum for all: the bits of a negative value, NaN or infinity are above those of the others.
    for (int i = 0; i < count; ++i) {
      __m512 top = _mm512_setzero_ps();
      std::int64_t j = 0;
      for (; j + 16 <= dim; j += 16) top = BitMax::of(top, _mm512_loadu_ps(rows[i] + j));
      if (rest != 0) top = BitMax::of(top, load_last(rows[i], dim));
      most[i] = top;
    }
    const __m512 tops = across<BitMax>(most);
    _mm512_store_ps(out.maximum, tops);
    _mm512_store_ps(out.minimum, _mm512_setzero_ps());
    return _mm512_cmpge_epu32_mask(_mm512_castps_si512(tops), _mm512_set1_epi32(infinity_bits)) == 0;
  }
  // A NaN or infinity times 0 is NaN, and stays.
  __m512 poison = _mm512_setzero_ps();
  for (int i = 0; i < count; ++i) {
    __m512 low = _mm512_set1_ps(__builtin_inff()), high = _mm512_set1_ps(-__builtin_inff());
    __m512 zeros = _mm512_setzero_ps();
    std::int64_t j = 0;
    for (; j + 16 <= dim; j += 16) {
      const __m512 v = _mm512_loadu_ps(rows[i] + j);
      low = Min::of(low, v);
      high = Max::of(high, v);
      zeros = _mm512_fmadd_ps(v, _mm512_setzero_ps(), zeros);
    }
    if (rest != 0) {
      const __m512 v = load_last(rows[i], dim);
      const __mmask16 lanes = dim < 16 ? rest : all16;
      low = _mm512_mask_min_ps(low, lanes, low, v);
      high = _mm512_mask_max_ps(high, lanes, high, v);
      zeros = _mm512_fmadd_ps(v, _mm512_setzero_ps(), zeros);
    }
    poison = _mm512_or_ps(poison, zeros);
    least[i] = low;
    most[i] = high;
  }
  _mm512_store_ps(out.minimum, across<Min>(least));
  _mm512_store_ps(out.maximum, across<Max>(most));
  return _mm512_cmp_ps_mask(poison, poison, _CMP_UNORD_Q) == 0;
}

// How a row's values become codes.
template <bool one_sided, bool stochastic>
struct Quantiser {
  __m512 low;
  __m512 units;

  Quantiser(float offset, float inverse) : low(_mm512_set1_ps(offset)), units(_mm512_set1_ps(inverse)) {}

  // Codes, not yet cut off at the largest one.
  __m512i operator()(__m512 x, const std::uint16_t* random) const {
    if constexpr (!one_sided) x = x - low;
    const __m512i fraction =
        _mm512_maskz_cvt_roundps_epi32(all16, x * units, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512i bits =
        stochastic ? _mm512_maskz_cvtepu16_epi32(all16, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(random)))
                   : _mm512_set1_epi32(codec::nearest_bits);
    return _mm512_maskz_srli_epi32(all16, _mm512_add_epi32(fraction, bits), 16);
  }
};

// The first count values (at most 16), zeros behind them. before: how many lie in front of them; see load_last.
inline __m512 load_floats(const float* from, std::int64_t before, std::int64_t count) {
  if (count >= 16) return _mm512_loadu_ps(from);
  const __mmask16 lanes = lanes16(count);
  if (before < 16) return _mm512_maskz_loadu_ps(lanes, from);
  const int missing = 16 - static_cast<int>(count);
  return _mm512_maskz_compress_ps(static_cast<__mmask16>(lanes << missing), _mm512_loadu_ps(from - missing));
}

// Packs four registers of codes into bytes, in order. (Packing saturates, so 256 becomes 255; it takes the 128-bit lanes one
// by one, which the permutation mends.)
template <int width>
inline __m512i pack_bytes(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(c, d));
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i codes = _mm512_maskz_permutexvar_epi32(all16, order, bytes);
  if constexpr (width == 8) return codes;
  return _mm512_min_epu8(codes, _mm512_set1_epi8((1 << width) - 1));
}

// Writes 64 codes, one a byte, as a stream of bits; or only the first count, the others being zero.
template <int width, bool all>
inline void write_64(__m512i codes, std::int64_t count, std::uint8_t* out) {
  const std::int64_t bytes = all ? 8 * width : stream_bytes(count, width);
  if constexpr (width == 8) {
    if constexpr (all)
      _mm512_storeu_si512(out, codes);
    else
      _mm512_mask_storeu_epi8(out, lanes64(bytes), codes);
  } else if constexpr (width == 4) {
    const __m512i pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x1001));
    const __m256i stream = _mm512_maskz_cvtepi16_epi8(~0u, pairs);
    if constexpr (all)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), stream);
    else
      _mm256_mask_storeu_epi8(out, static_cast<__mmask32>(lanes64(bytes)), stream);
  } else if constexpr (width == 2) {
    const __m512i pairs = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0401));
    const __m512i fours = _mm512_madd_epi16(pairs, _mm512_set1_epi32(0x00100001));
    const __m128i stream = _mm512_maskz_cvtepi32_epi8(all16, fours);
    if constexpr (all)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out), stream);
    else
      _mm_mask_storeu_epi8(out, lanes16(bytes), stream);
  } else if constexpr (width == 1) {
    write_word(out, _mm512_test_epi8_mask(codes, codes), bytes);
  } else {
    alignas(64) std::uint8_t bytewise[64];
    _mm512_store_si512(bytewise, codes);
    write_codes<width>(bytewise, all ? 64 : count, out);
  }
}

template <int width, bool one_sided, bool stochastic>
inline void quantise(const float* in, std::int64_t count, float offset, float inverse, const std::uint16_t* random,
                     std::uint8_t* out) {
  const Quantiser<one_sided, stochastic> quantiser(offset, inverse);
  std::int64_t j = 0;
  for (; j + 64 <= count; j += 64, out += 8 * width) {
    const auto codes = [&](std::int64_t first) {
      return quantiser(_mm512_loadu_ps(in + first), stochastic ? random + first : nullptr);
    };
    write_64<width, true>(pack_bytes<width>(codes(j), codes(j + 16), codes(j + 32), codes(j + 48)), 64, out);
  }
  if (j == count) return;
  const auto codes = [&](std::int64_t first) {
    if (first >= count) return _mm512_setzero_si512();
    return quantiser(load_floats(in + first, first, count - first), stochastic ? random + first : nullptr);
  };
  const __m512i last = pack_bytes<width>(codes(j), codes(j + 16), codes(j + 32), codes(j + 48));
  write_64<width, false>(_mm512_maskz_mov_epi8(lanes64(count - j), last), count - j, out);
}

// 16 codes of a stream of bits that starts at a byte, as 32-bit numbers.
template <int width>
inline __m512i spread(__m128i stream) {
  // The two bytes that hold a code, then the code shifted down to bit 0.
  alignas(64) static constexpr auto tables = [] {
    struct {
      std::int8_t bytes[64];
      std::int32_t shifts[16];
    } t{};
    for (int i = 0; i < 16; ++i) {
      const int first = i * width / 8, last = (i * width + width - 1) / 8;
      t.bytes[4 * i] = static_cast<std::int8_t>(first);
      t.bytes[4 * i + 1] = static_cast<std::int8_t>(last != first ? last : -1);
      t.bytes[4 * i + 2] = t.bytes[4 * i + 3] = -1;
      t.shifts[i] = i * width % 8;
    }
    return t;
  }();
  const __m512i bytes = _mm512_shuffle_epi8(_mm512_maskz_broadcast_i32x4(all16, stream), _mm512_load_si512(tables.bytes));
  return _mm512_and_si512(_mm512_maskz_srlv_epi32(all16, bytes, _mm512_load_si512(tables.shifts)),
                          _mm512_set1_epi32((1 << width) - 1));
}

template <int width, bool one_sided, bool accumulate>
inline void dequantise(const std::uint8_t* in, std::int64_t count, float offset, float scale, float* out) {
  const __m512 low = _mm512_set1_ps(offset);
  const __m512 step = _mm512_set1_ps(scale);
  for (std::int64_t first = 0; first < count; first += 16, in += 2 * width, out += 16) {
    const std::int64_t left = count - first;
    const __mmask16 lanes = left < 16 ? lanes16(left) : all16;
    __m512i codes;
    if constexpr (width == 8) {
      codes = _mm512_maskz_cvtepu8_epi32(all16, _mm_maskz_loadu_epi8(lanes, in));
    } else {
      const std::int64_t bytes = left < 16 ? stream_bytes(left, width) : 2 * width;
      codes = spread<width>(_mm_maskz_loadu_epi8(lanes16(bytes), in));
    }
    __m512 value = step * _mm512_maskz_cvtepi32_ps(all16, codes);
    if constexpr (!one_sided) value = low + value;
    if constexpr (accumulate) value = _mm512_maskz_loadu_ps(lanes, out) + value;
    _mm512_mask_storeu_ps(out, lanes, value);
  }
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
