// Bytes of a record: from shared memory to the wire in aligned words, and back from the wire. Records start at any
// byte.
#pragma once

#include "jobs.h"
#include "lanes.h"

namespace halocast::codec {

constexpr int word_bytes = 4;

HALOCAST_DEVICE bool is_rotated(const Records& records, int width) {
  return records.rounding == Rounding::rotated && width <= rotated_width_limit;
}

// philox_block of codec_core.h, with its round keys at hand.
HALOCAST_DEVICE void random_block(const RandomStream& stream, const RoundKeys& keys, std::int64_t node,
                                  std::uint32_t block, std::uint32_t words[4]) {
  std::uint32_t c0 = block, c1 = static_cast<std::uint32_t>(node), c2 = stream.epoch;
  std::uint32_t c3 = stream.tag | (static_cast<std::uint32_t>(node >> 32) & 0xffu);
#pragma unroll
  for (const auto& key : keys.of) {
    const std::uint64_t product0 = wide_product(c0, 0xD2511F53u);
    const std::uint64_t product1 = wide_product(c2, 0xCD9E8D57u);
    c0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ key[0];
    c2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ key[1];
    c1 = static_cast<std::uint32_t>(product1);
    c3 = static_cast<std::uint32_t>(product0);
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// Bytes wait in shared memory at addresses that agree with their addresses on the wire in the last four bits. Then a
// warp writes them in pieces of 16 bytes, but for the bytes before and after.
constexpr int piece_bytes = 16;

HALOCAST_DEVICE int phase_of(const std::uint8_t* wire) {
  return static_cast<int>(reinterpret_cast<std::uintptr_t>(wire) % piece_bytes);
}

// One lane's share. staged: within memory aligned to 16 bytes.
HALOCAST_DEVICE void copy_to_wire(std::uint8_t* wire, const std::uint8_t* staged, int bytes, int lane) {
  const int to_boundary = (piece_bytes - phase_of(wire)) % piece_bytes;
  const int head = to_boundary < bytes ? to_boundary : bytes;
  const int tail = head + (bytes - head) / piece_bytes * piece_bytes;
  if (lane < head) wire[lane] = staged[lane];
#pragma unroll 1
  for (int at = head + lane * piece_bytes; at < tail; at += warp_lanes * piece_bytes)
    store_as(wire + at, load_as<Quad>(staged + at));
  if (tail + lane < bytes) wire[tail + lane] = staged[tail + lane];
}

// Stages the lowest 1 to 8 bytes of a group's codes, and not one more: the next byte may be another row's. `at` counts
// from where the memory is aligned; it decides how few stores are enough.
HALOCAST_DEVICE void stage_codes(std::uint8_t* memory, int at, std::uint64_t codes, int bytes) {
  const auto low = static_cast<std::uint32_t>(codes);
  const auto high = static_cast<std::uint32_t>(codes >> 32);
  std::uint8_t* const to = memory + at;
  if ((at | bytes) % 4 == 0) {
    store_as(to, low);
    if (bytes == 8) store_as(to + 4, high);
  } else if ((at | bytes) % 2 == 0) {
    store_as(to, static_cast<std::uint16_t>(low));
    if (bytes >= 4) store_as(to + 2, static_cast<std::uint16_t>(low >> 16));
    if (bytes >= 6) store_as(to + 4, static_cast<std::uint16_t>(high));
    if (bytes >= 8) store_as(to + 6, static_cast<std::uint16_t>(high >> 16));
  } else {
    to[0] = static_cast<std::uint8_t>(low);
    if (bytes >= 2) to[1] = static_cast<std::uint8_t>(low >> 8);
    if (bytes >= 3) to[2] = static_cast<std::uint8_t>(low >> 16);
    if (bytes >= 4) to[3] = static_cast<std::uint8_t>(low >> 24);
    if (bytes >= 5) to[4] = static_cast<std::uint8_t>(high);
    if (bytes >= 6) to[5] = static_cast<std::uint8_t>(high >> 8);
    if (bytes >= 7) to[6] = static_cast<std::uint8_t>(high >> 16);
    if (bytes >= 8) to[7] = static_cast<std::uint8_t>(high >> 24);
  }
}

HALOCAST_DEVICE void stage_u16(std::uint8_t* to, std::uint16_t value) {
  to[0] = static_cast<std::uint8_t>(value);
  to[1] = static_cast<std::uint8_t>(value >> 8);
}

HALOCAST_DEVICE void stage_u32(std::uint8_t* to, std::uint32_t value) {
  if (reinterpret_cast<std::uintptr_t>(to) % sizeof value == 0) {
    store_as(to, value);
  } else {
    stage_u16(to, static_cast<std::uint16_t>(value));
    stage_u16(to + 2, static_cast<std::uint16_t>(value >> 16));
  }
}

constexpr int read_ahead_bytes = 2 * word_bytes;  // past the end of a record, fewer than this are loaded

// A place on the wire to read bits from, in whole words. guarded: these may reach past the end of the wire buffer, so
// that its last bytes are read one by one.
template <bool guarded>
class WireReader {
 public:
  // The words that hold some bits; what is done with them can wait until they are there.
  struct Words {
    std::uint32_t low, high, shift;

    HALOCAST_DEVICE std::uint32_t bits() const { return shift_right(low, high, shift); }
  };

  HALOCAST_DEVICE WireReader(const std::uint8_t* from, const std::uint8_t* wire_end)
      : words_(from - reinterpret_cast<std::uintptr_t>(from) % word_bytes),
        wire_end_(wire_end),
        shift_(static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(from) % word_bytes) * 8) {}

  // 32 bits, lowest first, from bit `first` on. Those past the record are unspecified.
  HALOCAST_DEVICE Words load(std::uint32_t first) const {
    const std::uint32_t position = shift_ + first;
    const std::uint8_t* const at = words_ + position / 32 * word_bytes;
    return {word(at), word(at + word_bytes), position % 32};
  }

 private:
  HALOCAST_DEVICE std::uint32_t word(const std::uint8_t* at) const {
    if (!guarded || wire_end_ - at >= word_bytes) return load_word_here(at);
    std::uint32_t value = 0;
#pragma unroll 1
    for (int i = 0; at + i < wire_end_; ++i) value |= static_cast<std::uint32_t>(at[i]) << (8 * i);
    return value;
  }

  const std::uint8_t* words_;
  const std::uint8_t* wire_end_;
  std::uint32_t shift_;
};

}  // namespace halocast::codec
