// One row of the codec: its range, its codes, and back.
#pragma once

#include <cstring>

#include "codec_core.h"

namespace halocast::HALOCAST_ISA {
namespace {

// What decides a row's grid, and whether the row can be sent at all.
struct RowRange {
  float minimum;
  float maximum;
  bool sendable;
};

inline RowRange range_of(const float* row, std::int64_t dim, bool one_sided, std::uint32_t limit) {
  float minimum = row[0];
  float maximum = row[0];
  bool sendable = true;
  for (std::int64_t j = 0; j < dim; ++j) {
    const float x = row[j];
    minimum = x < minimum ? x : minimum;
    maximum = x > maximum ? x : maximum;
    sendable &= (codec::bits_of(x) & 0x7fffffffu) < limit && !(one_sided && x < 0.0f);
  }
  return {minimum, maximum, sendable};
}

inline void write_u16(std::uint8_t* to, std::uint16_t value) {
  to[0] = static_cast<std::uint8_t>(value);
  to[1] = static_cast<std::uint8_t>(value >> 8);
}

inline std::uint16_t read_u16(const std::uint8_t* from) { return static_cast<std::uint16_t>(from[0] | from[1] << 8); }

// Codes as one stream of bits, lowest first.
class BitWriter {
 public:
  BitWriter(std::uint8_t* to, int width) : to_(to), width_(width) {}

  void put(std::uint32_t code) {
    pending_ |= code << count_;
    count_ += width_;
    for (; count_ >= 8; count_ -= 8, pending_ >>= 8) *to_++ = static_cast<std::uint8_t>(pending_);
  }

  void finish() {
    if (count_ > 0) *to_ = static_cast<std::uint8_t>(pending_);
  }

 private:
  std::uint8_t* to_;
  int width_;
  std::uint32_t pending_ = 0;
  int count_ = 0;
};

class BitReader {
 public:
  BitReader(const std::uint8_t* from, int width) : from_(from), width_(width) {}

  std::uint32_t get() {
    for (; count_ < width_; count_ += 8) pending_ |= static_cast<std::uint32_t>(*from_++) << count_;
    const std::uint32_t code = pending_ & ((1u << width_) - 1);
    pending_ >>= width_;
    count_ -= width_;
    return code;
  }

 private:
  const std::uint8_t* from_;
  int width_;
  std::uint32_t pending_ = 0;
  int count_ = 0;
};

}  // namespace
}  // namespace halocast::HALOCAST_ISA
