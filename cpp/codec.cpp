// Compiled once for each instruction set, as kernels.cpp is, and without fused multiply-adds: every implementation of the
// wire format must round alike.
#include "codec.h"

#include <type_traits>

#include "codec_fetch.h"
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

// Rows up to this long get the random bits of a whole group at once; longer ones part by part.
constexpr std::int64_t grouped_dim = 1024;
constexpr std::int64_t random_elements = grouped_dim * group_rows;

// What one step packs, and how far fetching is ahead of it: together they fit the first-level cache.
constexpr std::int64_t step_bytes = 8192;
constexpr std::int64_t bytes_ahead = 4096;

// Packs up to group_rows rows at a time, in stages that find them in the nearest cache.
template <bool one_sided, bool stochastic>
class GroupPacker {
 public:
  // For rows [first, last).
  GroupPacker(const Pack& pack, const RandomBits& random, Offender& offender, std::int64_t first, std::int64_t last)
      : p_(pack),
        r_(pack.records),
        dim_(pack.records.dim),
        random_(random),
        offender_(offender),
        fetcher_(pack, first, last),
        last_(last) {
    const std::int64_t row_bytes = dim_ * static_cast<std::int64_t>(sizeof(float));
    const std::int64_t fitting = step_bytes / row_bytes;
    step_ = fitting < 1 ? 1 : fitting < group_rows ? fitting : group_rows;
    ahead_ = step_ + (bytes_ahead + row_bytes - 1) / row_bytes;
    for (std::int64_t k = first; k < last; k += step_) pack_group(k);
  }

 private:
  // Lines that are fetched while a row is written, and while bits for so many blocks are drawn: half of a row's each.
  // Rounded up to whole lines and no further: running ahead of what find looked up would wait for page after page.
  std::int64_t lines_per_row() const { return stochastic ? (dim_ + 31) / 32 : (dim_ + 15) / 16; }
  static constexpr std::int64_t lines_of(std::int64_t blocks) { return blocks / 4; }

  void pack_group(std::int64_t k) {
    const int count = static_cast<int>(last_ - k < step_ ? last_ - k : step_);
    fetcher_.find(k + ahead_ + step_ + group_rows);
    fetcher_.reach(k + ahead_);
    for (int i = 0; i < count; ++i) rows_[i] = p_.in + row_of(p_.index, k + i) * p_.in_stride;
    std::uint64_t widths = 0;
    static_assert(sizeof widths == group_rows, "one byte for each row");
    if (count == group_rows)
      std::memcpy(&widths, r_.widths + k, sizeof widths);
    else
      std::memcpy(&widths, r_.widths + k, static_cast<std::size_t>(count));
    std::memcpy(widths_, &widths, sizeof widths);
    constexpr std::uint64_t each_row = 0x0101010101010101u;
    const bool any_ranged = p_.ranges != nullptr || widths != 32 * each_row;
    const bool any_coded = (widths & 0x0f * each_row) != 0;
    const bool all_coded = (widths & 0xf0 * each_row) == 0;
    if (any_ranged && !measure(k, count, all_coded)) return;
    if (stochastic && any_coded && dim_ <= grouped_dim) draw(k, count);
    for (int i = 0, end; i < count; i = end) {
      for (end = i + 1; end < count && widths_[end] == widths_[i];) ++end;
      write(k, i, end);
    }
  }

  // Ranges and grids of the group's rows; false if one of them cannot be sent.
  bool measure(std::int64_t k, int count, bool all_coded) {
    const bool clean = one_sided && all_coded ? find_ranges<true>(rows_, count, dim_, ranges_)
                                              : find_ranges<false>(rows_, count, dim_, ranges_);
    if (!clean)
      for (int i = 0; i < count; ++i) find_range(rows_[i], dim_, ranges_.minimum[i], ranges_.maximum[i]);
    if (p_.ranges != nullptr)
      for (int i = 0; i < count; ++i)  // adding 0 turns -0 into 0
        p_.ranges[k + i] = (one_sided ? ranges_.maximum[i] : ranges_.maximum[i] - ranges_.minimum[i]) + 0.0f;
    const bool rotated = r_.rounding == Rounding::rotated;
    if (!is_within<one_sided>(ranges_, rotated ? codec::rotated_magnitude_limit : codec::magnitude_limit)) {
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

  bool is_sendable(int i) const {
    if (widths_[i] == 32) return true;
    const std::uint32_t limit = is_rotated(r_, widths_[i]) ? codec::rotated_magnitude_limit : codec::magnitude_limit;
    return (codec::bits_of(ranges_.minimum[i]) & ~sign_bit) < limit &&
           (codec::bits_of(ranges_.maximum[i]) & ~sign_bit) < limit &&
           !(one_sided && widths_[i] < 16 && ranges_.minimum[i] < 0.0f);
  }

  // Random bits of the group's rows.
  void draw(std::int64_t k, int count) {
    const std::int64_t blocks = random_blocks(dim_);
    stride_ = random_.stride(blocks);
    for (int i = 0; i < count; i += random_rows)
      random_.fill(r_.nodes + k + i, count - i < random_rows ? count - i : random_rows, 0, blocks, bits_ + i * stride_,
                   [this](std::int64_t made) { fetcher_.advance(lines_of(made)); });
  }

  // Rows [begin, end) of the group, all of one width.
  void write(std::int64_t k, int begin, int end) {
    const int width = widths_[begin];
    if (width < 16 && !is_rotated(r_, width)) {
      with_width(width, [&](auto constant) { write_coded<decltype(constant)::value>(k, begin, end); });
      return;
    }
    for (int i = begin; i < end; ++i) {
      std::uint8_t* const record = p_.wire + r_.offsets[k + i];
      if (width == 32)
        write_float32(rows_[i], dim_, record);
      else if (width == 16)
        write_bfloat16(rows_[i], dim_, record);
      else
        pack_rotated(rows_[i], r_, r_.nodes[k + i], width, record);
      fetcher_.advance(lines_per_row());
    }
  }

  template <int width>
  __attribute__((noinline)) void write_coded(std::int64_t k, int begin, int end) {
    const std::int64_t dim = dim_, lines = lines_per_row(), stride = stride_;
    for (int i = begin; i < end; ++i) {
      std::uint8_t* codes = p_.wire + r_.offsets[k + i];
      if constexpr (!one_sided) {
        write_u16(codes, static_cast<std::uint16_t>(grids_.offset_code[i]));
        codes += 2;
      }
      write_u16(codes, static_cast<std::uint16_t>(grids_.scale_code[i]));
      codes += 2;
      const float offset = grids_.offset[i], inverse = grids_.inverse[i];
      if (!stochastic || dim <= grouped_dim)
        quantise<width, one_sided, stochastic>(rows_[i], dim, offset, inverse, bits_ + i * stride, codes);
      else
        for (std::int64_t first = 0; first < dim; first += random_elements) {
          const std::int64_t part = dim - first < random_elements ? dim - first : random_elements;
          random_.fill(r_.nodes + k + i, 1, first / block_elements, random_blocks(part), bits_,
                       [this](std::int64_t made) { fetcher_.advance(lines_of(made)); });
          quantise<width, one_sided, stochastic>(rows_[i] + first, part, offset, inverse, bits_,
                                                 codes + first / 8 * width);
        }
      fetcher_.advance(lines);
    }
  }

  const Pack& p_;
  const Records& r_;
  const std::int64_t dim_;
  const RandomBits& random_;
  Offender& offender_;
  RowFetcher fetcher_;
  const std::int64_t last_;
  std::int64_t step_;
  std::int64_t ahead_;
  const float* rows_[group_rows];
  std::uint8_t widths_[group_rows];
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
    GroupPacker<one_sided, stochastic>(p, random, offender, first, last);
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

constexpr std::int64_t rows_ahead = 8;

// Starts fetching a row that is written soon; the processor's own prefetcher follows from there.
inline __attribute__((always_inline)) void fetch_row(const float* row, std::int64_t dim) {
  constexpr std::int64_t most = 1024;
  const auto bytes = dim * static_cast<std::int64_t>(sizeof(float));
  prefetch(row, bytes < most ? bytes : most);
}

template <bool one_sided, bool accumulate>
std::int64_t unpack_rows(const Unpack& u, int threads) {
  Offender offender;
  for_row_chunks(u.records, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k) {
      if (is_given(u.index) && k + rows_ahead < last)
        fetch_row(u.out + row_of(u.index, k + rows_ahead) * u.out_stride, u.records.dim);
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
