// Compiled once for each instruction set, as kernels.cpp is, and without fused multiply-adds: every implementation of the
// wire format must round alike.
#include "codec.h"

#include <type_traits>
#include <cstdlib>

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

// Rows up to this long get the random bits of a whole group at once; longer ones part by part.
static const int PFD = getenv("PFD") ? atoi(getenv("PFD")) : 8;
constexpr std::int64_t grouped_dim = 1024;
constexpr std::int64_t random_elements = grouped_dim * group_rows;

// Packs up to group_rows rows at a time, in three steps that each find the rows in the nearest cache.
template <bool one_sided, bool stochastic>
class GroupPacker {
 public:
  GroupPacker(const Pack& pack, const RandomBits& random, Offender& offender)
      : p_(pack), r_(pack.records), random_(random), offender_(offender) {}

  // Rows [first, last).
  void operator()(std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; k += group_rows) {
      const int count = static_cast<int>(last - k < group_rows ? last - k : group_rows);
      for (int i = 0; i < count; ++i) rows_[i] = p_.in + row_of(p_.index, k + i) * p_.in_stride;
      find_ranges(k, count);
      if (stochastic && r_.dim <= grouped_dim) draw(k, count);
      for (int i = 0; i < count; ++i) {
        if (k + i + PFD < last) fetch_row(p_.in + row_of(p_.index, k + i + PFD) * p_.in_stride, r_.dim);
        if (sendable_[i]) write(k + i, i);
      }
    }
  }

 private:
  void find_ranges(std::int64_t k, int count) {
    bool any = p_.ranges != nullptr;
    bool only_max = one_sided;
    for (int i = 0; i < count; ++i) {
      sendable_[i] = true;
      any |= r_.widths[k + i] < 32;
      only_max &= r_.widths[k + i] < 16;
    }
    if (!any) return;
    BitExtremes extremes[group_rows];
    extremes_of(rows_, count, r_.dim, only_max, extremes);
    for (int i = 0; i < count; ++i) {
      const int width = r_.widths[k + i];
      const std::uint32_t limit = is_rotated(r_, width) ? codec::rotated_magnitude_limit : codec::magnitude_limit;
      // Of -0 or what cannot be sent, the maximum alone does not tell which.
      if (only_max && extremes[i].unsigned_max >= limit) extremes_of(rows_ + i, 1, r_.dim, false, extremes + i);
      ranges_[i] = range_of(extremes[i]);
      const RowRange& range = ranges_[i];
      const bool sendable = range.magnitude < limit && !(one_sided && width < 16 && range.minimum < 0.0f);
      if (!sendable && width < 32) {
        sendable_[i] = false;
        offender_.complain(k + i);
      }
      // Adding 0 turns -0 into 0.
      if (p_.ranges != nullptr) p_.ranges[k + i] = (one_sided ? range.maximum : range.maximum - range.minimum) + 0.0f;
    }
  }

  // Random bits of the group's rows.
  void draw(std::int64_t k, int count) {
    const std::int64_t blocks = random_blocks(r_.dim);
    stride_ = random_.stride(blocks);
    for (int i = 0; i < count; i += random_rows)
      random_.fill(r_.nodes + k + i, count - i < random_rows ? count - i : random_rows, 0, blocks, bits_ + i * stride_);
  }

  void write(std::int64_t k, int i) {
    const int width = r_.widths[k];
    std::uint8_t* const record = p_.wire + r_.offsets[k];
    if (width == 32)
      std::memcpy(record, rows_[i], static_cast<std::size_t>(r_.dim) * sizeof(float));
    else if (width == 16)
      write_bfloat16(rows_[i], r_.dim, record);
    else if (is_rotated(r_, width))
      pack_rotated(rows_[i], r_, r_.nodes[k], width, record);
    else
      with_width(width, [&](auto constant) { write_codes_of<decltype(constant)::value>(k, i, record); });
  }

  template <int width>
  inline __attribute__((always_inline)) void write_codes_of(std::int64_t k, int i, std::uint8_t* record) {
    const codec::Grid grid = codec::grid_of(ranges_[i].minimum, ranges_[i].maximum, width, one_sided);
    if constexpr (!one_sided) write_u16(record, grid.offset_code);
    write_u16(record + (one_sided ? 0 : 2), grid.scale_code);
    std::uint8_t* const codes = record + (one_sided ? 2 : 4);
    if (!stochastic || r_.dim <= grouped_dim) {
      quantise<width, one_sided, stochastic>(rows_[i], r_.dim, grid, bits_ + i * stride_, codes);
      return;
    }
    for (std::int64_t first = 0; first < r_.dim; first += random_elements) {
      const std::int64_t part = r_.dim - first < random_elements ? r_.dim - first : random_elements;
      random_.fill(r_.nodes + k, 1, first / block_elements, random_blocks(part), bits_);
      quantise<width, one_sided, stochastic>(rows_[i] + first, part, grid, bits_, codes + first / 8 * width);
    }
  }

  const Pack& p_;
  const Records& r_;
  const RandomBits& random_;
  Offender& offender_;
  const float* rows_[group_rows];
  RowRange ranges_[group_rows];
  bool sendable_[group_rows];
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
