// Codes as a stream of bits, one at a time.
#pragma once

#include <cstdint>

namespace halocast::HALOCAST_ISA {
namespace {

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
