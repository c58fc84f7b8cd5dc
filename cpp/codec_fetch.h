// Fetching rows ahead of their packing.
#pragma once

#include "codec.h"

namespace halocast::HALOCAST_ISA {
namespace {

inline std::int64_t row_of(const RowIndex& index, std::int64_t k) {
  return index.index32 != nullptr ? index.index32[k] : index.index64 != nullptr ? index.index64[k] : k;
}

inline bool is_given(const RowIndex& index) { return index.index32 != nullptr || index.index64 != nullptr; }

// Runs ahead of the packing through the cache lines of rows [first, last), some at a time, so that memory is never idle
// while the processor computes. What it fetches goes to the second-level cache: the first one waits for few lines at once.
class RowFetcher {
 public:
  RowFetcher(const Pack& pack, std::int64_t first, std::int64_t last)
      : p_(pack),
        row_bytes_(static_cast<std::uintptr_t>(pack.records.dim) * sizeof(float)),
        indexed_(is_given(pack.index)),
        adjacent_(!indexed_ && pack.in_stride == pack.records.dim),
        short_(indexed_ && row_bytes_ <= short_bytes),
        row_(first),
        found_(first),
        last_(last) {
    enter_row();
    if (adjacent_) {  // all rows are one
      row_ = last - 1;
      end_ = address(row_) + row_bytes_;
    }
  }

  // Fetches the next lines.
  inline __attribute__((always_inline)) void advance(std::int64_t lines) {
    if (short_) return;
    for (; lines > 0; --lines) step();
  }

  // Fetches what is left of the rows before this one.
  void reach(std::int64_t row) {
    if (short_) return;
    if (row > last_) row = last_;
    if (adjacent_)
      for (const std::uintptr_t end = address(row); next_ < end && row_ < last_;) step();
    else
      while (row_ < row) step();
  }

  // Looks up the addresses of rows before this one, in their index and in the page table. An instruction that waits for the
  // latter holds up all that follow; some of them in a row wait hardly longer than one.
  void find(std::int64_t row) {
    if (!indexed_) return;
    if (row > last_) row = last_;
    // Among rows from all over memory, the processor does not notice that these are read in order.
    fetch(reinterpret_cast<std::uintptr_t>(p_.records.nodes + row));
    fetch(reinterpret_cast<std::uintptr_t>(p_.records.offsets + row));
    for (; found_ < row; ++found_) {
      const std::uintptr_t begin = address(found_), last = begin + row_bytes_ - 1;
      if (short_) {
        for (std::uintptr_t at = begin & ~(line_bytes - 1); at <= last; at += line_bytes) fetch(at);
      } else {
        fetch(begin);
        if ((begin ^ last) >= page_bytes) fetch(last);
      }
    }
  }

 private:
  static constexpr std::uintptr_t line_bytes = 64;
  static constexpr std::uintptr_t page_bytes = 4096;
  // Rows found by index and no longer than this are fetched where they are found.
  static constexpr std::uintptr_t short_bytes = 256;

  static inline __attribute__((always_inline)) void fetch(std::uintptr_t address) {
    __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
  }

  inline __attribute__((always_inline)) void step() {
    fetch(next_);
    next_ += line_bytes;
    if (next_ >= end_) {
      ++row_;
      enter_row();
    }
  }

  std::uintptr_t address(std::int64_t row) const {
    return reinterpret_cast<std::uintptr_t>(p_.in) +
           static_cast<std::uintptr_t>(row_of(p_.index, row) * p_.in_stride) * sizeof(float);
  }

  void enter_row() {
    if (row_ >= last_) {
      next_ -= line_bytes;  // fetches the last line again and again, which costs nothing
      return;
    }
    next_ = address(row_) & ~(line_bytes - 1);
    end_ = address(row_) + row_bytes_;
  }

  const Pack& p_;
  const std::uintptr_t row_bytes_;
  const bool indexed_;
  const bool adjacent_;  // each row starts where the one before ends
  const bool short_;
  std::int64_t row_;
  std::int64_t found_;
  const std::int64_t last_;
  std::uintptr_t next_ = 0;
  std::uintptr_t end_ = 0;
};

}  // namespace
}  // namespace halocast::HALOCAST_ISA
