// What one row of the codec needs on every processor: its range, its codes as a stream of bits, and back. The vector
// versions in codec_avx2.h and codec_avx512.h give the same bytes.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstring>

#include "codec.h"
#include "codec_core.h"

namespace halocast::HALOCAST_ISA {
namespace {

// Rows whose extremes are found together.
constexpr int group_rows = 8;

// Room that random bits need behind the last element: vector code reads whole registers of them.
constexpr std::int64_t random_padding = 64;

// Extremes of a group of rows; room for a whole register each.
struct GroupRanges {
  alignas(64) float minimum[2 * group_rows];
  alignas(64) float maximum[2 * group_rows];
};

constexpr std::uint32_t sign_bit = 0x80000000u;
constexpr std::uint32_t infinity_bits = 0x7f800000u;

// Extremes of a row through its values' bits, so that a NaN is one of them. As unsigned numbers, negative values are above
// positive ones and grow with their magnitude; as signed numbers, positive values are on top.
inline void find_range(const float* row, std::int64_t dim, float& minimum, float& maximum) {
  std::uint32_t unsigned_max = 0, unsigned_min = 0xffffffffu;
  std::int32_t signed_max = -0x7fffffff - 1;
#pragma omp simd reduction(max : unsigned_max, signed_max) reduction(min : unsigned_min)
  for (std::int64_t j = 0; j < dim; ++j) {
    const std::uint32_t bits = codec::bits_of(row[j]);
    const auto as_signed = static_cast<std::int32_t>(bits);
    unsigned_max = bits > unsigned_max ? bits : unsigned_max;
    unsigned_min = bits < unsigned_min ? bits : unsigned_min;
    signed_max = as_signed > signed_max ? as_signed : signed_max;
  }
  minimum = codec::float_of(unsigned_max >= sign_bit ? unsigned_max : unsigned_min);
  maximum = codec::float_of(signed_max >= 0 ? static_cast<std::uint32_t>(signed_max) : unsigned_min);
}

// Grids of a group of rows.
struct GroupGrids {
  alignas(64) float offset[group_rows];
  alignas(64) float inverse[group_rows];
  alignas(64) std::uint32_t offset_code[group_rows];
  alignas(64) std::uint32_t scale_code[group_rows];
};

// One lane for each row of a group.
typedef float GroupFloats __attribute__((vector_size(4 * group_rows)));
typedef std::uint32_t GroupWords __attribute__((vector_size(4 * group_rows)));

inline void widen(const std::uint8_t* widths, GroupWords& out) {
#if defined(__AVX2__)
  out = reinterpret_cast<GroupWords>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(widths))));
#else
  for (int i = 0; i < group_rows; ++i) out[i] = widths[i];
#endif
}

// codec::grid_of for all rows at once; what it makes of widths that have no grid is never read.
template <bool one_sided>
inline void make_grids(const GroupRanges& ranges, const std::uint8_t* widths, GroupGrids& out) {
  GroupFloats minimum, maximum;
  GroupWords width;
  std::memcpy(&minimum, ranges.minimum, sizeof minimum);
  std::memcpy(&maximum, ranges.maximum, sizeof maximum);
  widen(widths, width);

  GroupWords offset_code = {};
  if constexpr (!one_sided) {
    const auto bits = reinterpret_cast<GroupWords>(minimum);
    const GroupWords away_from_zero = bits >> 31 & reinterpret_cast<GroupWords>((bits & 0xffffu) != 0);
    offset_code = ((bits >> 16) + away_from_zero) & reinterpret_cast<GroupWords>(minimum != 0.0f);
  }
  const auto offset = reinterpret_cast<GroupFloats>(offset_code << 16);

  const GroupWords one = GroupWords{} + 1u;
  const GroupWords top = (one << (width & 15u)) - one;
  const GroupFloats scale = (maximum - offset) / __builtin_convertvector(top, GroupFloats);
  const auto bits = reinterpret_cast<GroupWords>(scale);
  const auto small = reinterpret_cast<GroupWords>(bits < codec::smallest_scale);
  const GroupWords scale_code = ((small & (codec::smallest_scale >> 15)) | (~small & (bits + 0x7fffu) >> 15)) &
                                reinterpret_cast<GroupWords>(scale > 0.0f);
  const auto decoded = reinterpret_cast<GroupFloats>(scale_code << 15);
  const auto inverse = reinterpret_cast<GroupFloats>(reinterpret_cast<GroupWords>(codec::fraction_units / decoded) &
                                                     reinterpret_cast<GroupWords>(scale_code != 0));

  std::memcpy(out.offset, &offset, sizeof offset);
  std::memcpy(out.inverse, &inverse, sizeof inverse);
  std::memcpy(out.offset_code, &offset_code, sizeof offset_code);
  std::memcpy(out.scale_code, &scale_code, sizeof scale_code);
}

// Whether all magnitudes of a group are below a limit (as bits), and no minimum below 0 where that matters.
template <bool non_negative>
inline bool is_within(const GroupRanges& ranges, std::uint32_t limit) {
  GroupFloats minimum, maximum;
  std::memcpy(&minimum, ranges.minimum, sizeof minimum);
  std::memcpy(&maximum, ranges.maximum, sizeof maximum);
  GroupWords beyond = reinterpret_cast<GroupWords>((reinterpret_cast<GroupWords>(minimum) & ~sign_bit) >= limit) |
                      reinterpret_cast<GroupWords>((reinterpret_cast<GroupWords>(maximum) & ~sign_bit) >= limit);
  if constexpr (non_negative) beyond |= reinterpret_cast<GroupWords>(minimum < 0.0f);
  std::uint64_t words[group_rows / 2];
  std::memcpy(words, &beyond, sizeof words);
  return (words[0] | words[1] | words[2] | words[3]) == 0;
}

// Memory that starts at any byte. (Not to be spelt auto: deduction drops the attribute.)
typedef std::uint16_t UnalignedU16 __attribute__((aligned(1), may_alias));
typedef std::uint32_t UnalignedU32 __attribute__((aligned(1), may_alias));
typedef std::uint64_t UnalignedU64 __attribute__((aligned(1), may_alias));

inline void write_u16(std::uint8_t* to, std::uint16_t value) { *reinterpret_cast<UnalignedU16*>(to) = value; }
inline std::uint16_t read_u16(const std::uint8_t* from) { return *reinterpret_cast<const UnalignedU16*>(from); }

// The lowest `bytes` bytes of a word; bytes is 1 to 8. No byte beyond is touched.
inline void write_word(std::uint8_t* to, std::uint64_t word, std::int64_t bytes) {
  if (bytes == 8) {
    *reinterpret_cast<UnalignedU64*>(to) = word;
    return;
  }
  if (bytes & 4) {
    *reinterpret_cast<UnalignedU32*>(to) = static_cast<std::uint32_t>(word);
    word >>= 32;
    to += 4;
  }
  if (bytes & 2) {
    *reinterpret_cast<UnalignedU16*>(to) = static_cast<std::uint16_t>(word);
    word >>= 16;
    to += 2;
  }
  if (bytes & 1) *to = static_cast<std::uint8_t>(word);
}

inline std::uint64_t read_word(const std::uint8_t* from, std::int64_t bytes) {
  if (bytes == 8) return *reinterpret_cast<const UnalignedU64*>(from);
  std::uint64_t word = 0;
  int shift = 0;
  if (bytes & 4) {
    word = *reinterpret_cast<const UnalignedU32*>(from);
    shift = 32;
    from += 4;
  }
  if (bytes & 2) {
    word |= static_cast<std::uint64_t>(*reinterpret_cast<const UnalignedU16*>(from)) << shift;
    shift += 16;
    from += 2;
  }
  if (bytes & 1) word |= static_cast<std::uint64_t>(*from) << shift;
  return word;
}

constexpr std::uint64_t low_bits_of_bytes(int width) { return ((1u << width) - 1) * 0x0101010101010101u; }

// Eight codes, one a byte, to width bytes.
template <int width>
inline std::uint64_t compress8(std::uint64_t codes) {
#if defined(__BMI2__)
  return _pext_u64(codes, low_bits_of_bytes(width));
#else
  codes = (codes & 0x00ff00ff00ff00ffu) | (codes & 0xff00ff00ff00ff00u) >> (8 - width);
  codes = (codes & 0x0000ffff0000ffffu) | (codes & 0xffff0000ffff0000u) >> (16 - 2 * width);
  return (codes & 0x00000000ffffffffu) | codes >> 32 << 4 * width;
#endif
}

// And back; bits above the lowest 8 * width are ignored.
template <int width>
inline std::uint64_t expand8(std::uint64_t packed) {
#if defined(__BMI2__)
  return _pdep_u64(packed, low_bits_of_bytes(width));
#else
  packed = (packed & ((1ull << 4 * width) - 1)) | packed >> 4 * width << 32;
  packed = (packed & ((1ull << 2 * width) - 1) * 0x0000000100000001u) |
           (packed << (16 - 2 * width) & ((1ull << 2 * width) - 1) * 0x0001000000010000u);
  return (packed & ((1u << width) - 1) * 0x0001000100010001u) |
         (packed << (8 - width) & ((1u << width) - 1) * 0x0100010001000100u);
#endif
}

// Bytes of a stream of count codes.
constexpr std::int64_t stream_bytes(std::int64_t count, int width) { return (count * width + 7) / 8; }

// Writes count codes, one a byte, as a stream of bits, and no byte more. The bytes from count up to the next multiple of
// eight must be zero.
template <int width>
inline void write_codes(const std::uint8_t* codes, std::int64_t count, std::uint8_t* out) {
  static_assert(width < 8, "codes of eight bits are copied");
  std::int64_t left = stream_bytes(count, width);
  // Whole words may be stored as long as they end within the stream: what follows overwrites their upper bytes.
  for (; left >= 8; left -= width, out += width, codes += 8)
    *reinterpret_cast<UnalignedU64*>(out) = compress8<width>(*reinterpret_cast<const UnalignedU64*>(codes));
  if (left == 0) return;
  std::uint64_t word = 0;
  for (int shift = 0; shift < 8 * left; shift += 8 * width, codes += 8)
    word |= compress8<width>(*reinterpret_cast<const UnalignedU64*>(codes)) << shift;
  write_word(out, word, left);
}

#if !defined(__AVX2__)

// The extremes of some rows. Returns false if there may be a NaN or, where the rows should have no negative value, one of
// these: what is written is then of no use.
template <bool non_negative>
bool find_ranges(const float* const* rows, int count, std::int64_t dim, GroupRanges& out) {
  for (int i = 0; i < count; ++i) find_range(rows[i], dim, out.minimum[i], out.maximum[i]);
  for (int i = 0; i < count; ++i)
    if ((codec::bits_of(out.minimum[i]) & ~sign_bit) >= infinity_bits || (non_negative && out.minimum[i] < 0.0f) ||
        (codec::bits_of(out.maximum[i]) & ~sign_bit) >= infinity_bits)
      return false;
  return true;
}

template <int width, bool one_sided, bool stochastic>
void quantise(const float* in, std::int64_t count, float offset, float inverse, const std::uint16_t* random,
              std::uint8_t* out) {
  constexpr std::uint32_t top = (1u << width) - 1;
  constexpr std::int64_t step = 64;
  for (std::int64_t first = 0; first < count; first += step) {
    std::uint8_t codes[step] = {};
    const std::int64_t n = count - first < step ? count - first : step;
    for (std::int64_t j = 0; j < n; ++j) {
      const float x = one_sided ? in[first + j] : in[first + j] - offset;
      const std::int32_t fraction = __builtin_irintf(x * inverse);
      const std::uint32_t bits = stochastic ? random[first + j] : codec::nearest_bits;
      codes[j] = static_cast<std::uint8_t>(codec::code_of(fraction, bits, top));
    }
    if constexpr (width == 8)
      std::memcpy(out + first, codes, static_cast<std::size_t>(n));
    else
      write_codes<width>(codes, n, out + first / 8 * width);
  }
}

template <int width, bool one_sided, bool accumulate>
void dequantise(const std::uint8_t* in, std::int64_t count, float offset, float scale, float* out) {
  for (std::int64_t first = 0; first < count; first += 8) {
    const std::int64_t left = stream_bytes(count - first, width);
    std::uint64_t codes = read_word(in + first / 8 * width, left < width ? left : width);
    if constexpr (width < 8) codes = expand8<width>(codes);
    const std::int64_t n = count - first < 8 ? count - first : 8;
    for (std::int64_t j = 0; j < n; ++j) {
      const float product = scale * static_cast<float>(static_cast<std::int32_t>(codes >> 8 * j & 0xffu));
      const float value = one_sided ? product : offset + product;
      out[first + j] = accumulate ? out[first + j] + value : value;
    }
  }
}

#endif

inline void write_bfloat16(const float* in, std::int64_t count, std::uint8_t* record) {
  UnalignedU16* const out = reinterpret_cast<UnalignedU16*>(record);
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) out[j] = codec::bfloat16_of(in[j]);
}

template <bool accumulate>
void read_bfloat16(const std::uint8_t* record, std::int64_t count, float* out) {
  const UnalignedU16* const in = reinterpret_cast<const UnalignedU16*>(record);
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j)
    out[j] = accumulate ? out[j] + codec::float_of_bfloat16(in[j]) : codec::float_of_bfloat16(in[j]);
}

// (A loop, since a call of memcpy takes longer than a short row.)
inline void write_float32(const float* in, std::int64_t count, std::uint8_t* record) {
  UnalignedU32* const out = reinterpret_cast<UnalignedU32*>(record);
#pragma omp simd
  for (std::int64_t j = 0; j < count; ++j) out[j] = codec::bits_of(in[j]);
}

template <bool accumulate>
void read_float32(const std::uint8_t* record, std::int64_t count, float* out) {
  if constexpr (accumulate) {
    const UnalignedU32* const in = reinterpret_cast<const UnalignedU32*>(record);
#pragma omp simd
    for (std::int64_t j = 0; j < count; ++j) out[j] += codec::float_of(in[j]);
  } else {
    std::memcpy(out, record, static_cast<std::size_t>(count) * sizeof(float));
  }
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
