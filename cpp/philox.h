// Philox4x32-10, a counter-based generator: J. Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (SC 2011).
//
// key = (seed low, seed high); counter = (element / 4, node low, epoch, tag | node bits 32 to 39); lane element % 4.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace halocast::HALOCAST_ISA {
namespace {

constexpr std::uint32_t philox_multiplier_0 = 0xD2511F53u;
constexpr std::uint32_t philox_multiplier_1 = 0xCD9E8D57u;
constexpr std::uint32_t philox_weyl_0 = 0x9E3779B9u;
constexpr std::uint32_t philox_weyl_1 = 0xBB67AE85u;
constexpr int philox_rounds = 10;

// One block of 4 words for each 64-bit lane of a register.
typedef std::uint64_t PhiloxState __attribute__((vector_size(vector_bytes)));
constexpr int philox_batch = vector_bytes / 8;

// Product of the low halves of each lane. (The zero-masked intrinsic avoids a false warning of gcc 12, bug 105593.)
inline PhiloxState multiply_low_halves(PhiloxState a, PhiloxState b) {
#if defined(__AVX512F__)
  return reinterpret_cast<PhiloxState>(
      _mm512_maskz_mul_epu32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
  return reinterpret_cast<PhiloxState>(_mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#else
  return (a & 0xffffffffu) * (b & 0xffffffffu);
#endif
}

// Lane i of one, lane i of the other, and so on: the lower and the upper half of that.
inline void interleave(PhiloxState one, PhiloxState other, PhiloxState& lower, PhiloxState& upper) {
  typedef std::int64_t Lanes __attribute__((vector_size(vector_bytes)));
  Lanes low;
  for (int lane = 0; lane < philox_batch; ++lane) low[lane] = lane / 2 + lane % 2 * philox_batch;
  lower = __builtin_shuffle(one, other, low);
  upper = __builtin_shuffle(one, other, low + philox_batch / 2);
}

struct PhiloxRow {
  std::uint32_t key0, key1, node, epoch, tag;

  PhiloxRow(const RandomStream& stream, std::int64_t global_node)
      : key0(static_cast<std::uint32_t>(stream.seed)),
        key1(static_cast<std::uint32_t>(stream.seed >> 32)),
        node(static_cast<std::uint32_t>(global_node)),
        epoch(stream.epoch),
        tag(stream.tag | (static_cast<std::uint32_t>(global_node >> 32) & 0xffu)) {}
};

// Words of `philox_batch` blocks, from their counters, a block a lane. The state sits in the low halves of the lanes; the
// high halves hold what earlier products left, and are never read.
inline void philox_rounds_of(PhiloxState c0, PhiloxState c1, PhiloxState c2, PhiloxState c3, std::uint32_t key0,
                             std::uint32_t key1, std::uint32_t* words) {
  const PhiloxState multiplier0 = PhiloxState{} + philox_multiplier_0;
  const PhiloxState multiplier1 = PhiloxState{} + philox_multiplier_1;
  for (int round = 0; round < philox_rounds; ++round) {
    const PhiloxState product0 = multiply_low_halves(c0, multiplier0);
    const PhiloxState product1 = multiply_low_halves(c2, multiplier1);
    c0 = (product1 >> 32) ^ c1 ^ key0;
    c2 = (product0 >> 32) ^ c3 ^ key1;
    c1 = product1;
    c3 = product0;
    key0 += philox_weyl_0;
    key1 += philox_weyl_1;
  }
  PhiloxState lower, upper;
  interleave((c0 & 0xffffffffu) | c1 << 32, (c2 & 0xffffffffu) | c3 << 32, lower, upper);
  std::memcpy(words, &lower, sizeof lower);
  std::memcpy(words + 2 * philox_batch, &upper, sizeof upper);
}

// Words of `philox_batch` consecutive blocks of a row.
inline void philox_blocks(const PhiloxRow& row, std::uint32_t block, std::uint32_t* words) {
  PhiloxState c0 = PhiloxState{} + block;
  for (int lane = 0; lane < philox_batch; ++lane) c0[lane] += static_cast<std::uint64_t>(lane);
  philox_rounds_of(c0, PhiloxState{} + row.node, PhiloxState{} + row.epoch, PhiloxState{} + row.tag, row.key0,
                   row.key1, words);
}

// Words of a row are made this many at a time, on the stack.
constexpr std::int64_t words_at_once = 256;

// Fills words for elements [first, first + count) of a row; first is a multiple of 4, count at most words_at_once, and
// words has room for words_at_once.
inline void philox_words(const PhiloxRow& row, std::int64_t first, std::int64_t count, std::uint32_t* words) {
  for (std::int64_t done = 0; done < count; done += 4 * philox_batch)
    philox_blocks(row, static_cast<std::uint32_t>((first + done) / 4), words + done);
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
