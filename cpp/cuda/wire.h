// Bytes of a record: from shared memory to the wire in aligned words, and back from the wire. Records start at any byte.
#pragma once

#include "jobs.h"
#include "lanes.h"

namespace halocast::codec {

constexpr int word_bytes = 4;

HALOCAST_DEVICE bool is_rotated(const Records& records, int width) {
  return records.rounding == Rounding::rotated && width <= rotated_width_limit;
}

HALOCAST_DEVICE std::int64_t row_of(const RowIndex& index, std::int64_t row) {
  if (index.index32 != nullptr) return load_constant_as<std::int32_t>(index.index32 + row);
  if (index.index64 != nullptr) return load_constant_as<std::int64_t>(index.index64 + row);
  return row;
}

// The counter of a row's random words, but for the number of the block.
struct RandomRow {
  std::uint32_t node, tag;
};

HALOCAST_DEVICE RandomRow random_row_of(const Records& records, std::int64_t row) {
  const auto node = static_cast<std::uint64_t>(load_constant_as<std::int64_t>(records.nodes + row));
  return {static_cast<std::uint32_t>(node), records.stream.tag | (static_cast<std::uint32_t>(node >> 32) & 0xffu)};
}

HALOCAST_DEVICE void random_block(const Records& records, const RandomRow& row, std::uint32_t block,
                                  std::uint32_t words[4]) {
  const std::uint32_t key[2] = {static_cast<std::uint32_t>(records.stream.seed),
                                static_cast<std::uint32_t>(records.stream.seed >> 32)};
  const std::uint32_t counter[4] = {block, row.node, records.stream.epoch, row.tag};
  philox_block(key, counter, words);
}

// One of `lanes` lanes copies its share of `bytes` bytes to the wire: bytes up to the first whole word there, words, bytes.
// Reads up to a word past the staged bytes.
HALOCAST_DEVICE void copy_to_wire(std::uint8_t* wire, const std::uint8_t* staged, int bytes, int lane, int lanes) {
  const int misaligned = static_cast<int>(reinterpret_cast<std::uintptr_t>(wire) % word_bytes);
  int head = (word_bytes - misaligned) % word_bytes;
  head = head < bytes ? head : bytes;
  const int words = (bytes - head) / word_bytes;
  const int tail = head + words * word_bytes;

  const std::uint8_t* const from = staged + head;
  const int excess = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) % word_bytes);
  const std::uint8_t* const aligned = from - excess;
  for (int i = lane; i < words; i += lanes) {
    const auto low = load_as<std::uint32_t>(aligned + i * word_bytes);
    const auto high = load_as<std::uint32_t>(aligned + (i + 1) * word_bytes);
    store_as(wire + head + i * word_bytes, shift_right(low, high, static_cast<std::uint32_t>(8 * excess)));
  }
  for (int i = lane; i < head; i += lanes) wire[i] = staged[i];
  for (int i = tail + lane; i < bytes; i += lanes) wire[i] = staged[i];
}

// The codes of a group are `width` bytes; `to` is aligned to 8 bytes and lies a multiple of `width` bytes further.
HALOCAST_DEVICE void stage_codes(std::uint8_t* to, std::uint64_t codes, int width) {
  const auto low = static_cast<std::uint32_t>(codes);
  const auto high = static_cast<std::uint32_t>(codes >> 32);
  switch (width) {
    case 8:
      store_as(to, codes);
      break;
    case 4:
      store_as(to, low);
      break;
    case 6:
      store_as(to + 4, static_cast<std::uint16_t>(high));
      store_as(to + 2, static_cast<std::uint16_t>(low >> 16));
      [[fallthrough]];
    case 2:
      store_as(to, static_cast<std::uint16_t>(low));
      break;
    case 5:
      to[4] = static_cast<std::uint8_t>(high);
      to[3] = static_cast<std::uint8_t>(low >> 24);
      [[fallthrough]];
    case 3:
      to[2] = static_cast<std::uint8_t>(low >> 16);
      to[1] = static_cast<std::uint8_t>(low >> 8);
      [[fallthrough]];
    default:
      to[0] = static_cast<std::uint8_t>(low);
  }
}

HALOCAST_DEVICE void stage_u16(std::uint8_t* to, std::uint16_t value) { store_as(to, value); }

// A place on the wire to read bits from: whole words, none of which starts at or after the end of the wire buffer.
class WireReader {
 public:
  HALOCAST_DEVICE WireReader(const std::uint8_t* from, const std::uint8_t* wire_end)
      : words_(from - reinterpret_cast<std::uintptr_t>(from) % word_bytes),
        wire_end_(wire_end),
        shift_(static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(from) % word_bytes) * 8) {}

  // `count` (1 to 32) bits, lowest first, from bit `first` on; what lies above them is unspecified.
  HALOCAST_DEVICE std::uint32_t bits(std::uint32_t first, std::uint32_t count) const {
    const std::uint32_t position = shift_ + first;
    const std::uint32_t shift = position % 32;
    const std::uint8_t* const low = words_ + position / 32 * word_bytes;
    return shift_right(word(low), shift + count > 32 ? word(low + word_bytes) : 0u, shift);
  }

 private:
  HALOCAST_DEVICE std::uint32_t word(const std::uint8_t* at) const {
    if (wire_end_ - at >= word_bytes) return load_constant_as<std::uint32_t>(at);
    std::uint32_t value = 0;  // the last bytes of the buffer
    for (int i = 0; at + i < wire_end_; ++i) value |= static_cast<std::uint32_t>(at[i]) << (8 * i);
    return value;
  }

  const std::uint8_t* words_;
  const std::uint8_t* wire_end_;
  std::uint32_t shift_;
};

}  // namespace halocast::codec
