// Compiled once for each instruction set, as kernels.cpp is, and without fused multiply-adds: every implementation of the
// wire format must round alike.
#include "codec.h"

#include <type_traits>

#include "codec_random.h"
#include "codec_rotate.h"
#include "codec_row.h"
#include "parallel.h"
#include "simd.h"
#if defined(__AVX512F__)
#include "codec_avx512.h"
#elif defined(__AVX2__)
#include "codec_avx2.h"
#endif

namespace halocast::HALOCAST_ISA {
namespace {

bool is_rotated(const Records& r, int width) {
  return r.rounding == Rounding::rotated && width <= codec::rotated_width_limit;
}

std::int64_t row_of(const RowIndex& index, std::int64_t k) {
  return index.index32 != nullptr ? index.index32[k] : index.index64 != nullptr ? index.index64[k] : k;
}

// The lowest row that any thread complained about. (Builtins, since std::atomic's functions have external linkage.)
class Offender {
 public:
  void complain(std::int64_t row) {
    std::int64_t lowest = this->row();
    while ((lowest < 0 || row < lowest) &&
           !__atomic_compare_exchange_n(&row_, &lowest, row, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }

  std::int64_t row() const { return __atomic_load_n(&row_, __ATOMIC_RELAXED); }

 private:
  std::int64_t row_ = -1;
};

// Calls run(first, last) for chunks of rows on threads.
template <class Run>
void for_row_chunks(const Records& r, int threads, const Run& run) {
  constexpr std::int64_t elements = 1 << 15;  // enough work to pay for taking a chunk
  std::int64_t step = r.dim >= elements ? 1 : elements / (r.dim > 0 ? r.dim : 1);
  step = (step + group_rows - 1) / group_rows * group_rows;
  parallel_for((r.count + step - 1) / step, threads, [&](std::int64_t chunk) {
    run(chunk * step, (chunk + 1) * step < r.count ? (chunk + 1) * step : r.count);
  });
}

// Turns a coded width into a constant, so that the inner loops hold no branches.
template <class Function>
inline __attribute__((always_inline)) void with_width(int width, const Function& function) {
  switch (width) {
    case 1: return function(std::integral_constant<int, 1>{});
    case 2: return function(std::integral_constant<int, 2>{});
    case 3: return function(std::integral_constant<int, 3>{});
    case 4: return function(std::integral_constant<int, 4>{});
    case 5: return function(std::integral_constant<int, 5>{});
    case 6: return function(std::integral_constant<int, 6>{});
    default: return function(std::integral_constant<int, 8>{});
  }
}

// Starts fetching a row that is needed soon; the processor's own prefetcher follows from there.
inline __attribute__((always_inline)) void fetch_row(const float* row, std::int64_t dim) {
  constexpr std::int64_t most = 1024;
  const auto bytes = dim * static_cast<std::int64_t>(sizeof(float));
  prefetch(row, bytes < most ? bytes : most);
}

// Rows found by index and no longer than this are fetched where they are found.
constexpr std::uintptr_t short_row_bytes = 256;
constexpr std::uintptr_t line_bytes = 64;
constexpr std::uintptr_t page_bytes = 4096;

inline __attribute__((always_inline)) void fetch_line(std::uintptr_t address) {
  // To the second-level cache: the first one can wait for a few lines only.
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
}

// Runs ahead of the packing through the cache lines of rows [first, last), little by little, so that memory has work while
// the processor computes.
class RowFetcher {
 public:
  RowFetcher(const Pack& pack, std::int64_t first, std::int64_t last)
      : p_(pack),
        bytes_(static_cast<std::uintptr_t>(pack.records.dim) * sizeof(float)),
        together_(pack.in_stride == pack.records.dim && pack.index.index32 == nullptr && pack.index.index64 == nullptr),
        indexed_(pack.index.index32 != nullptr || pack.index.index64 != nullptr),
        at_once_(indexed_ && bytes_ <= short_row_bytes),
        row_(first),
        last_(last),
        found_(first) {
    start();
  }

  // Fetches some lines.
  void advance(std::int64_t lines) {
    if (at_once_) return;
    for (; lines > 0; --lines) step();
  }

  // Fetches whatever of the rows before this one is still to be fetched.
  void reach(std::int64_t row) {
    if (at_once_) return;
    if (row > last_) row = last_;
    if (together_) {
      const std::uintptr_t end = address(row);
      for (; next_ < end; next_ += line_bytes) fetch_line(next_);
    }
    while (!together_ && row_ < row) step();
  }

  // Fetches the first line of the rows before this one: an instruction that has to look up the address of a page holds up
  // those behind it, and some such look-ups at a time hold them up for hardly longer than one.
  void find(std::int64_t row) {
    if (!indexed_) return;
    if (row > last_) row = last_;
    for (; found_ < row; ++found_) {
      const std::uintptr_t begin = address(found_), last = begin + bytes_ - 1;
      if (at_once_) {
        for (std::uintptr_t at = begin & ~(line_bytes - 1); at <= last; at += line_bytes) fetch_line(at);
      } else {
        fetch_line(begin);
        if ((begin ^ last) >= page_bytes) fetch_line(last);
      }
    }
  }

 private:
  inline __attribute__((always_inline)) void step() {
    fetch_line(next_);
    next_ += line_bytes;
    if (next_ >= end_) {
      ++row_;
      start();
    }
  }

  std::uintptr_t address(std::int64_t row) const {
    return reinterpret_cast<std::uintptr_t>(p_.in + row_of(p_.index, row) * p_.in_stride);
  }

  void start() {
    if (row_ >= last_) {
      next_ -= line_bytes;  // goes on fetching the last one, which costs nothing
      return;
    }
    const std::uintptr_t begin = address(row_);
    next_ = begin & ~(line_bytes - 1);
    end_ = begin + bytes_;
    if (together_) {
      end_ = address(last_);
      row_ = last_;
    }
  }

  const Pack& p_;
  std::uintptr_t bytes_;
  bool together_;  // each row starts where the one before ends
  bool indexed_;
  bool at_once_;
  std::int64_t row_;
  std::int64_t last_;
  std::int64_t found_;
  std::uintptr_t next_ = 0;
  std::uintptr_t end_ = 0;
};

// Rows up to this long get the random bits of a whole group at once; longer ones part by part.
constexpr std::int64_t grouped_dim = 1024;
constexpr std::int64_t random_elements = grouped_dim * group_rows;

// What one step packs, and how far fetching is ahead of it: together they fit the first-level cache.
constexpr std::int64_t step_bytes = 8192;
constexpr std::int64_t bytes_ahead = 4096;
// A line is fetched for so many elements written, and for so many blocks of random bits drawn: half of a row's each.
constexpr std::int64_t elements_per_line = 32;
constexpr std::int64_t blocks_per_line = 4;

// Packs up to group_rows rows at a time, in steps that each find the rows in the nearest cache.
template <bool one_sided, bool stochastic>
class GroupPacker {
 public:
  GroupPacker(const Pack& pack, const RandomBits& random, Offender& offender)
      : p_(pack), r_(pack.records), random_(random), offender_(offender) {}

  // Rows [first, last).
  void operator()(std::int64_t first, std::int64_t last) {
    const std::int64_t row_bytes = r_.dim * static_cast<std::int64_t>(sizeof(float));
    std::int64_t step = group_rows;
    while (step > 1 && step * row_bytes > step_bytes) step /= 2;
    const std::int64_t ahead = step + (bytes_ahead + row_bytes - 1) / row_bytes;
    RowFetcher fetcher(p_, first, last);
    for (std::int64_t k = first; k < last; k += step) {
      const int count = static_cast<int>(last - k < step ? last - k : step);
      fetcher.find(k + ahead + step + group_rows);
      fetcher.reach(k + ahead);
      for (int i = 0; i < count; ++i) rows_[i] = p_.in + row_of(p_.index, k + i) * p_.in_stride;
      widths_ = r_.widths + k;
      if (count < group_rows) {
        std::memcpy(last_widths_, widths_, static_cast<std::size_t>(count));
        widths_ = last_widths_;
      }
      if (!measure(k, count)) continue;
      if (stochastic && r_.dim <= grouped_dim && any_coded()) draw(k, count, fetcher);
      for (int i = 0; i < count; ++i) {
        write(k + i, i, fetcher);
        fetcher.advance((r_.dim + elements_per_line - 1) / elements_per_line);
      }
    }
  }

 private:
  // Ranges and grids of the group's rows; false if one of them cannot be sent.
  bool measure(std::int64_t k, int count) {
    std::uint64_t widths;
    static_assert(sizeof widths == group_rows, "one byte a row");
    std::memcpy(&widths, widths_, sizeof widths);
    if (widths == 0x2020202020202020u && p_.ranges == nullptr) return true;  // all of 32 bits
    const bool all_coded = (widths & 0xf0f0f0f0f0f0f0f0u) == 0;
    const bool clean = one_sided && all_coded ? find_ranges<true>(rows_, count, r_.dim, ranges_)
                                          : find_ranges<false>(rows_, count, r_.dim, ranges_);
    if (!clean)
      for (int i = 0; i < count; ++i) find_range(rows_[i], r_.dim, ranges_.minimum[i], ranges_.maximum[i]);
    if (p_.ranges != nullptr)
      for (int i = 0; i < count; ++i)  // adding 0 turns -0 into 0
        p_.ranges[k + i] = (one_sided ? ranges_.maximum[i] : ranges_.maximum[i] - ranges_.minimum[i]) + 0.0f;
    const std::uint32_t limit =
        r_.rounding == Rounding::rotated ? codec::rotated_magnitude_limit : codec::magnitude_limit;
    if (!is_within<one_sided>(ranges_, limit)) {
      bool sendable = true;
      for (int i = 0; i < count; ++i)
        if (!is_sendable(i)) {
          offender_.complain(k + i);
          sendable = false;
        }
      if (!sendable) return false;
    }
    make_grids<one_sided>(ranges_, widths_, grids_);
    return true;
  }

  bool any_coded() const {
    std::uint64_t widths;
    std::memcpy(&widths, widths_, sizeof widths);
    return (widths & 0x0f0f0f0f0f0f0f0fu) != 0;
  }

  bool is_sendable(int i) const {
    const std::uint32_t limit = is_rotated(r_, widths_[i]) ? codec::rotated_magnitude_limit : codec::magnitude_limit;
    const std::uint32_t low = codec::bits_of(ranges_.minimum[i]), high = codec::bits_of(ranges_.maximum[i]);
    const bool sendable = (low & ~sign_bit) < limit && (high & ~sign_bit) < limit &&
                          !(one_sided && widths_[i] < 16 && ranges_.minimum[i] < 0.0f);
    return sendable || widths_[i] == 32;
  }

  // Random bits of the group's rows.
  void draw(std::int64_t k, int count, RowFetcher& fetcher) {
    const std::int64_t blocks = random_blocks(r_.dim);
    stride_ = random_.stride(blocks);
    for (int i = 0; i < count; i += random_rows)
      random_.fill(r_.nodes + k + i, count - i < random_rows ? count - i : random_rows, 0, blocks, bits_ + i * stride_,
                   [&](int blocks) { fetcher.advance(blocks / blocks_per_line); });
  }

  void write(std::int64_t k, int i, RowFetcher& fetcher) {
    const int width = widths_[i];
    std::uint8_t* const record = p_.wire + r_.offsets[k];
    if (width == 32)
      std::memcpy(record, rows_[i], static_cast<std::size_t>(r_.dim) * sizeof(float));
    else if (width == 16)
      write_bfloat16(rows_[i], r_.dim, record);
    else if (is_rotated(r_, width))
      pack_rotated(rows_[i], r_, r_.nodes[k], width, record);
    else
      with_width(width, [&](auto constant) { write_codes_of<decltype(constant)::value>(k, i, record, fetcher); });
  }

  template <int width>
  inline __attribute__((always_inline)) void write_codes_of(std::int64_t k, int i, std::uint8_t* record, RowFetcher& fetcher) {
    if constexpr (!one_sided) write_u16(record, static_cast<std::uint16_t>(grids_.offset_code[i]));
    write_u16(record + (one_sided ? 0 : 2), static_cast<std::uint16_t>(grids_.scale_code[i]));
    std::uint8_t* const codes = record + (one_sided ? 2 : 4);
    const float offset = grids_.offset[i], inverse = grids_.inverse[i];
    if (!stochastic || r_.dim <= grouped_dim) {
      quantise<width, one_sided, stochastic>(rows_[i], r_.dim, offset, inverse, bits_ + i * stride_, codes);
      return;
    }
    for (std::int64_t first = 0; first < r_.dim; first += random_elements) {
      const std::int64_t part = r_.dim - first < random_elements ? r_.dim - first : random_elements;
      random_.fill(r_.nodes + k, 1, first / block_elements, random_blocks(part), bits_,
                   [&](int blocks) { fetcher.advance(blocks / blocks_per_line); });
      quantise<width, one_sided, stochastic>(rows_[i] + first, part, offset, inverse, bits_, codes + first / 8 * width);
    }
  }

  const Pack& p_;
  const Records& r_;
  const RandomBits& random_;
  Offender& offender_;
  const float* rows_[group_rows];
  const std::uint8_t* widths_ = nullptr;
  std::uint8_t last_widths_[group_rows] = {};
  GroupRanges ranges_ = {};
  GroupGrids grids_;
  std::int64_t stride_ = 0;
  alignas(64) std::uint16_t bits_[random_elements + random_padding];
};

template <bool one_sided, bool stochastic>
std::int64_t pack_rows(const Pack& p, int threads) {
  const RandomBits random(p.records.stream, p.records.dim);
  Offender offender;
  for_row_chunks(p.records, threads, [&](std::int64_t first, std::int64_t last) {
    GroupPacker<one_sided, stochastic>(p, random, offender)(first, last);
  });
  return offender.row();
}

std::int64_t pack(const Pack& p, int threads) {
  const bool stochastic = p.records.rounding != Rounding::nearest;
  if (p.records.one_sided)
    return stochastic ? pack_rows<true, true>(p, threads) : pack_rows<true, false>(p, threads);
  return stochastic ? pack_rows<false, true>(p, threads) : pack_rows<false, false>(p, threads);
}

// False where a record would leave the wire buffer, and for a width that does not exist.
bool lies_within(const Records& r, std::int64_t k, std::int64_t wire_bytes) {
  const int width = r.widths[k];
  if (!codec::is_width(width)) return false;
  const std::int64_t bytes = codec::record_bytes(width, r.dim, r.one_sided, is_rotated(r, width));
  return r.offsets[k] >= 0 && bytes <= wire_bytes && r.offsets[k] <= wire_bytes - bytes;
}

template <bool one_sided, bool accumulate>
void unpack_row(const Unpack& u, std::int64_t k) {
  const Records& r = u.records;
  const std::uint8_t* const record = u.wire + r.offsets[k];
  float* const out = u.out + row_of(u.index, k) * u.out_stride;
  const int width = r.widths[k];
  if (width == 32)
    read_float32<accumulate>(record, r.dim, out);
  else if (width == 16)
    read_bfloat16<accumulate>(record, r.dim, out);
  else if (is_rotated(r, width))
    unpack_rotated<accumulate>(record, r, r.nodes[k], width, out);
  else
    with_width(width, [&](auto constant) {
      const float offset = one_sided ? 0.0f : codec::decoded_offset(read_u16(record));
      const float scale = codec::decoded_scale(read_u16(record + (one_sided ? 0 : 2)));
      dequantise<decltype(constant)::value, one_sided, accumulate>(record + (one_sided ? 2 : 4), r.dim, offset, scale,
                                                                   out);
    });
}

template <bool one_sided, bool accumulate>
std::int64_t unpack_rows(const Unpack& u, int threads) {
  Offender offender;
  for_row_chunks(u.records, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k) {
      if (u.index.index32 != nullptr || u.index.index64 != nullptr)
        if (k + group_rows < last) fetch_row(u.out + row_of(u.index, k + group_rows) * u.out_stride, u.records.dim);
      if (lies_within(u.records, k, u.wire_bytes))
        unpack_row<one_sided, accumulate>(u, k);
      else
        offender.complain(k);
    }
  });
  return offender.row();
}

std::int64_t unpack(const Unpack& u, int threads) {
  if (u.records.one_sided)
    return u.accumulate ? unpack_rows<true, true>(u, threads) : unpack_rows<true, false>(u, threads);
  return u.accumulate ? unpack_rows<false, true>(u, threads) : unpack_rows<false, false>(u, threads);
}

}  // namespace

const CodecTable* codec_table() {
  static constexpr CodecTable codec{pack, unpack};
  return &codec;
}

}  // namespace halocast::HALOCAST_ISA
