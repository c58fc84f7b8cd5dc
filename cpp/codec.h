// What the codec takes: rows of float32 and the wire buffer that holds their records. docs/wire-format.md has the bytes.
//
// Compiled once for each instruction set like kernels.h, but from codec.cpp, where no multiply-add may be fused.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace halocast {

enum class Rounding : int { stochastic = 0, nearest = 1, rotated = 2 };

// Rows and where their records lie: record k starts at byte offsets[k] of the wire buffer.
struct Records {
  const std::uint8_t* widths;   // [count]
  const std::int64_t* offsets;  // [count]
  std::int64_t count;
  std::int64_t dim;
  bool one_sided;
  Rounding rounding;
  RandomStream stream;
  const std::int64_t* nodes;  // [count]
};

// Row k of a matrix is index[k], or k without an index (both null).
struct RowIndex {
  const std::int32_t* index32;
  const std::int64_t* index64;
};

// ranges: maximum - minimum of each row (one-sided: its maximum), or null.
struct Pack {
  Records records;
  const float* in;
  std::int64_t in_stride;
  RowIndex index;
  std::uint8_t* wire;
  std::int64_t wire_bytes;
  float* ranges;
};

// Writes rows, or adds to them; an index must then be without repeats.
struct Unpack {
  Records records;
  const std::uint8_t* wire;
  std::int64_t wire_bytes;
  float* out;
  std::int64_t out_stride;
  RowIndex index;
  bool accumulate;
};

struct CodecTable {
  // Returns the first row that cannot be sent, or -1; all records are unspecified if there is one.
  std::int64_t (*pack)(const Pack&, int threads);
  // Returns the first row whose record is not within the wire buffer or whose width is unknown, or -1.
  std::int64_t (*unpack)(const Unpack&, int threads);
};

namespace portable {
const CodecTable* codec_table();
}
namespace avx2 {
const CodecTable* codec_table();
}
namespace avx512 {
const CodecTable* codec_table();
}

}  // namespace halocast
