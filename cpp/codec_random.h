// The random bits of stochastic rounding: 16 for each element, of the row's own stream, for several rows at once.
//
// The first two of the ten rounds depend on the row or on the block alone in half of their words, and each of these
// products is made once for a row or a block; see philox.h for the generator.
#pragma once

#include <type_traits>

#include "codec_row.h"
#include "philox.h"

namespace halocast::HALOCAST_ISA {
namespace {

// Rows whose blocks share registers.
constexpr int random_rows = philox_batch;
constexpr std::int64_t block_elements = 8;

inline std::int64_t random_blocks(std::int64_t dim) { return (dim + block_elements - 1) / block_elements; }

#if defined(__AVX512F__)
inline PhiloxState high_halves(PhiloxState v) {
  return reinterpret_cast<PhiloxState>(_mm512_maskz_shuffle_epi32(0xffff, reinterpret_cast<__m512i>(v), _MM_PERM_DDBB));
}
inline PhiloxState swap_halves(PhiloxState v) {
  return reinterpret_cast<PhiloxState>(_mm512_maskz_shuffle_epi32(0xffff, reinterpret_cast<__m512i>(v), _MM_PERM_CDAB));
}
inline PhiloxState even_lanes(PhiloxState a, PhiloxState b) {
  return reinterpret_cast<PhiloxState>(
      _mm512_maskz_unpacklo_epi64(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
inline PhiloxState odd_lanes(PhiloxState a, PhiloxState b) {
  return reinterpret_cast<PhiloxState>(
      _mm512_maskz_unpackhi_epi64(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
inline PhiloxState xor3(PhiloxState a, PhiloxState b, std::uint64_t c) {
  return reinterpret_cast<PhiloxState>(
      _mm512_ternarylogic_epi64(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),
                                _mm512_set1_epi64(static_cast<long long>(c)), 0x96));
}
#elif defined(__AVX2__)
inline PhiloxState high_halves(PhiloxState v) { return v >> 32; }
inline PhiloxState swap_halves(PhiloxState v) {
  return reinterpret_cast<PhiloxState>(_mm256_shuffle_epi32(reinterpret_cast<__m256i>(v), 0xb1));
}
inline PhiloxState even_lanes(PhiloxState a, PhiloxState b) {
  return reinterpret_cast<PhiloxState>(
      _mm256_unpacklo_epi64(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
inline PhiloxState odd_lanes(PhiloxState a, PhiloxState b) {
  return reinterpret_cast<PhiloxState>(
      _mm256_unpackhi_epi64(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
#else
inline PhiloxState high_halves(PhiloxState v) { return v >> 32; }
inline PhiloxState swap_halves(PhiloxState v) { return v >> 32 | v << 32; }
inline PhiloxState even_lanes(PhiloxState a, PhiloxState b) { return PhiloxState{a[0], b[0]}; }
inline PhiloxState odd_lanes(PhiloxState a, PhiloxState b) { return PhiloxState{a[1], b[1]}; }
#endif

#if !defined(__AVX512F__)
inline PhiloxState xor3(PhiloxState a, PhiloxState b, std::uint64_t c) { return a ^ b ^ c; }
#endif

// Lane i of the state is block lane_block(i) of its batch: the lanes that even_lanes takes come first in memory.
constexpr int lane_block(int lane) { return lane / 2 + lane % 2 * (philox_batch / 2); }

class RandomBits {
 public:
  // Rows of fewer blocks than this share registers; longer ones lose little by having their own.
  static constexpr std::int64_t shared_blocks = 32;

  RandomBits(const RandomStream& stream, std::int64_t dim)
      : blocks_(random_blocks(dim)), shares_(blocks_ < shared_blocks && blocks_ % philox_batch != 0), tag_(stream.tag) {
    std::uint32_t key0 = static_cast<std::uint32_t>(stream.seed);
    std::uint32_t key1 = static_cast<std::uint32_t>(stream.seed >> 32);
    for (int round = 0; round < philox_rounds; ++round) {
      key0_[round] = key0;
      key1_[round] = key1;
      key0 += philox_weyl_0;
      key1 += philox_weyl_1;
    }
    const std::uint64_t epoch_product = static_cast<std::uint64_t>(stream.epoch) * philox_multiplier_1;
    epoch_high_ = static_cast<std::uint32_t>(epoch_product >> 32) ^ key0_[0];
    epoch_low_ = static_cast<std::uint32_t>(epoch_product) ^ key0_[1];
    if (!shares_) return;
    for (std::int64_t batch = 0; batch < blocks_; ++batch)
      for (int lane = 0; lane < philox_batch; ++lane) {
        const std::int64_t block = batch * philox_batch + lane_block(lane);
        row_[batch][lane] = static_cast<std::uint64_t>(block / blocks_);
        product_[batch][lane] = static_cast<std::uint64_t>(block % blocks_) * philox_multiplier_0;
      }
  }

  // Elements from one row's bits to the next one's, as fill leaves them for so many blocks of a row.
  std::int64_t stride(std::int64_t blocks) const {
    return (shares_ ? blocks : (blocks + philox_batch - 1) / philox_batch * philox_batch) * block_elements;
  }

  // Blocks [first, first + count) of up to random_rows rows; all blocks where they share registers.
  // meanwhile(blocks) is called now and then, with what was made since: to fetch what is needed next.
  template <class Meanwhile>
  void fill(const std::int64_t* nodes, int rows, std::int64_t first, std::int64_t count, std::uint16_t* out,
            const Meanwhile& meanwhile) const {
    PhiloxState node = {};
    if (rows == random_rows)
      std::memcpy(&node, nodes, sizeof node);
    else
      for (int i = 0; i < rows; ++i) node[i] = static_cast<std::uint64_t>(nodes[i]);
    const PhiloxState node_high = (node >> 32 & 0xffu) | tag_;
    const PhiloxState product = multiply_low_halves(node ^ epoch_high_, PhiloxState{} + philox_multiplier_0);
    const PhiloxState tag = node_high ^ key1_[0];
    const PhiloxState high = product >> 32 ^ key1_[1];
    if (shares_) {
      const auto make = [&](auto together, std::int64_t batch) {
        constexpr int n = decltype(together)::value;
        Counters counters[n];
        for (int i = 0; i < n; ++i)
          counters[i] = {product_[batch + i], __builtin_shuffle(tag, row_[batch + i]),
                         __builtin_shuffle(product, row_[batch + i]), __builtin_shuffle(high, row_[batch + i])};
        finish<n>(counters, out + batch * batch_elements);
        meanwhile(n * philox_batch);
      };
      for_batches(blocks_, make);
      return;
    }
    PhiloxState start;
    for (int lane = 0; lane < philox_batch; ++lane)
      start[lane] = static_cast<std::uint64_t>(first + lane_block(lane)) * philox_multiplier_0;
    const std::int64_t batches = (count + philox_batch - 1) / philox_batch;
    for (int row = 0; row < rows; ++row, out += batches * batch_elements) {
      const Counters of_row{start, PhiloxState{} + tag[row], PhiloxState{} + product[row], PhiloxState{} + high[row]};
      PhiloxState block = start;
      const auto make = [&](auto together, std::int64_t batch) {
        constexpr int n = decltype(together)::value;
        Counters counters[n];
        for (int i = 0; i < n; ++i) {
          counters[i] = of_row;
          counters[i].block = block;
          block += PhiloxState{} + std::uint64_t{philox_multiplier_0} * philox_batch;
        }
        finish<n>(counters, out + batch * batch_elements);
        meanwhile(n * philox_batch);
      };
      for_batches(batches, make);
    }
  }

 private:
  static constexpr std::int64_t batch_elements = philox_batch * block_elements;
  // Batches made together, so that the rounds of one fill the waits of another.
  static constexpr int together = 2;

  // What the rounds start from. block: its number times the first multiplier; tag: the fourth counter word with the first
  // key; product: of the second round's first word; high: its upper half with the second key.
  struct Counters {
    PhiloxState block, tag, product, high;
  };

  template <class Make>
  static inline __attribute__((always_inline)) void for_batches(std::int64_t batches, const Make& make) {
    std::int64_t batch = 0;
    for (; batch + together <= batches; batch += together) make(std::integral_constant<int, together>{}, batch);
    for (; batch < batches; ++batch) make(std::integral_constant<int, 1>{}, batch);
  }

  // The words of one block a lane, for n batches.
  template <int n>
  inline __attribute__((always_inline)) void finish(const Counters counters[n], std::uint16_t* out) const {
    const PhiloxState multiplier0 = PhiloxState{} + philox_multiplier_0;
    const PhiloxState multiplier1 = PhiloxState{} + philox_multiplier_1;
    PhiloxState c0[n], c1[n], c2[n], c3[n];
    for (int i = 0; i < n; ++i) {
      c1[i] = multiply_low_halves(high_halves(counters[i].block) ^ counters[i].tag, multiplier1);
      c0[i] = high_halves(c1[i]) ^ epoch_low_;
      c2[i] = counters[i].high ^ counters[i].block;
      c3[i] = counters[i].product;
    }
    for (int round = 2; round < philox_rounds - 1; ++round)
      for (int i = 0; i < n; ++i) {
        const PhiloxState product0 = multiply_low_halves(c0[i], multiplier0);
        const PhiloxState product1 = multiply_low_halves(c2[i], multiplier1);
        c0[i] = xor3(high_halves(product1), c1[i], key0_[round]);
        c2[i] = xor3(high_halves(product0), c3[i], key1_[round]);
        c1[i] = product1;
        c3[i] = product0;
      }
    // The last round leaves two words in each lane, in their order in memory.
    const PhiloxState low_half = PhiloxState{} + 0xffffffffu;
    for (int i = 0; i < n; ++i, out += batch_elements) {
      const PhiloxState words01 =
          swap_halves(multiply_low_halves(c2[i], multiplier1)) ^ ((c1[i] ^ key0_[philox_rounds - 1]) & low_half);
      const PhiloxState words23 =
          swap_halves(multiply_low_halves(c0[i], multiplier0)) ^ ((c3[i] ^ key1_[philox_rounds - 1]) & low_half);
      const PhiloxState lower = even_lanes(words01, words23);
      const PhiloxState upper = odd_lanes(words01, words23);
      std::memcpy(out, &lower, sizeof lower);
      std::memcpy(out + batch_elements / 2, &upper, sizeof upper);
    }
  }

  std::int64_t blocks_;
  bool shares_;
  std::uint32_t tag_;
  std::uint32_t epoch_high_;  // of epoch * multiplier, with the first key
  std::uint32_t epoch_low_;   // with the second round's key
  std::uint64_t key0_[philox_rounds];
  std::uint64_t key1_[philox_rounds];
  PhiloxState row_[shared_blocks];
  PhiloxState product_[shared_blocks];
};

}  // namespace
}  // namespace halocast::HALOCAST_ISA
