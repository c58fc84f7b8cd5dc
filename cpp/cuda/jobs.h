// What the kernels are given, and how a launch is shaped. Every address in a job is one of the device's.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../codec.h"
#include "../codec_core.h"

namespace halocast::codec {

// The keys of each round of Philox4x32-10: made once, so that the kernels find them among their constants.
struct RoundKeys {
  std::uint32_t of[10][2];
};

inline RoundKeys round_keys_of(std::uint64_t seed) {
  RoundKeys keys;
  auto key0 = static_cast<std::uint32_t>(seed);
  auto key1 = static_cast<std::uint32_t>(seed >> 32);
  for (auto& key : keys.of) {
    key[0] = key0;
    key[1] = key1;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return keys;
}

// The messages' headers are prepared but for the tag's stream part and the epoch.
struct PackJob {
  Pack pack;
  const std::uint8_t* headers;         // [messages, header_bytes]
  const std::int64_t* header_offsets;  // [messages]
  std::int64_t messages;
  std::int64_t* first_bad;  // lowered to the first row that cannot be sent
  RoundKeys keys = round_keys_of(pack.records.stream.seed);
};

struct UnpackJob {
  Unpack unpack;
  std::int64_t* first_bad;  // lowered to the first row whose record is outside the wire buffer or has an unknown width
  RoundKeys keys = round_keys_of(unpack.records.stream.seed);
};

constexpr int group_values = 8;    // elements of one block of random words; their codes are `width` whole bytes
constexpr int groups_at_once = 4;  // groups of a row that a lane of a pack holds in registers
constexpr int units_at_once = 4;   // loads that a lane of an unpack has in flight
constexpr std::int64_t longest_dim = (1 << 26) - 1;  // whose bits can be counted in 32 bits
constexpr std::int64_t shared_rotated_dim = 4096;    // longer rows of the rotated codec do not fit into shared memory

// lanes: of a warp that share a row. vector: floats that one access moves. whole: a row fits into registers.
struct Shape {
  int lanes;
  int vector;
  bool whole;
};

// The widest access that every row allows: 4, 2 or 1 floats.
inline int vector_of(const float* matrix, std::int64_t stride, std::int64_t dim) {
  const std::uint64_t floats = reinterpret_cast<std::uintptr_t>(matrix) / sizeof(float) |
                               static_cast<std::uint64_t>(stride) | static_cast<std::uint64_t>(dim);
  return floats % 4 == 0 ? 4 : floats % 2 == 0 ? 2 : 1;
}

// As few lanes as hold the row: what is done once a row (range, scale, addresses) then costs fewest instructions.
inline Shape pack_shape(const Pack& pack) {
  const std::int64_t groups = (pack.records.dim + group_values - 1) / group_values;
  int lanes = 2;
  while (lanes < 32 && lanes * groups_at_once < groups) lanes *= 2;
  return {lanes, vector_of(pack.in, pack.in_stride, pack.records.dim), groups <= 32 * groups_at_once};
}

// About four accesses a lane; more lanes where that lets them write longer pieces of a row side by side.
inline Shape unpack_shape(const Unpack& unpack) {
  const int vector = vector_of(unpack.out, unpack.out_stride, unpack.records.dim);
  const std::int64_t units = unpack.records.dim / vector;
  int lanes = 4;
  while (lanes < 32 && lanes * units_at_once < units) lanes *= 2;
  return {lanes, vector, true};
}

template <int lanes_, int vector_, bool whole_>
struct FixedShape {
  static constexpr int lanes = lanes_;
  static constexpr int vector = vector_;
  static constexpr bool whole = whole_;
};

// Calls run(FixedShape) with a shape as constants.
template <class Run>
void with_shape(const Shape& shape, const Run& run) {
  const auto with_vector = [&](auto lanes, auto whole) {
    constexpr int count = decltype(lanes)::value;
    constexpr bool fits = decltype(whole)::value;
    if (shape.vector == 4) return run(FixedShape<count, 4, fits>{});
    if (shape.vector == 2) return run(FixedShape<count, 2, fits>{});
    return run(FixedShape<count, 1, fits>{});
  };
  constexpr auto yes = std::true_type{};
  if (!shape.whole) return with_vector(std::integral_constant<int, 32>{}, std::false_type{});
  switch (shape.lanes) {
    case 2:
      return with_vector(std::integral_constant<int, 2>{}, yes);
    case 4:
      return with_vector(std::integral_constant<int, 4>{}, yes);
    case 8:
      return with_vector(std::integral_constant<int, 8>{}, yes);
    case 16:
      return with_vector(std::integral_constant<int, 16>{}, yes);
    default:
      return with_vector(std::integral_constant<int, 32>{}, yes);
  }
}

}  // namespace halocast::codec
