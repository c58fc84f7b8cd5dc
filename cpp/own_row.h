// A row that its own gradient is written over.
#pragma once

#include <cstdint>
#include <cstring>

namespace halocast::HALOCAST_ISA {
namespace {

// Room for what is still read of one row; without room (count 0) rows stay where they are. (Not a std::vector, whose
// code would be shared by all instruction sets: see kernels.cpp.)
template <class T>
class OwnRow {
 public:
  explicit OwnRow(std::int64_t count) : room_(count > 0 ? new T[static_cast<std::size_t>(count)] : nullptr) {}
  ~OwnRow() { delete[] room_; }
  OwnRow(const OwnRow&) = delete;
  OwnRow& operator=(const OwnRow&) = delete;

  // `from`, or its copy in the room, `offset` elements from the start.
  const T* keep(const T* from, std::int64_t offset, std::int64_t count) {
    if (room_ == nullptr) return from;
    std::memcpy(room_ + offset, from, static_cast<std::size_t>(count) * sizeof(T));
    return room_ + offset;
  }

 private:
  T* room_;
};

}  // namespace
}  // namespace halocast::HALOCAST_ISA
