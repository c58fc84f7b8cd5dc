// Compiled once for each instruction set, as kernels.cpp is, and without fused multiply-adds: every implementation of the
// wire format must round alike.
#include "codec.h"

#include <type_traits>

#include "codec_rotate.h"
#include "codec_row.h"
#include "parallel.h"

namespace halocast::HALOCAST_ISA {
namespace {

bool is_rotated(const Records& r, int width) {
  return r.rounding == Rounding::rotated && width <= codec::rotated_width_limit;
}

// False where a record would leave the wire buffer, and for a width that does not exist.
bool lies_within(const Records& r, std::int64_t k, std::int64_t wire_bytes) {
  const int width = r.widths[k];
  if (!codec::is_width(width)) return false;
  const std::int64_t bytes = codec::record_bytes(width, r.dim, r.one_sided, is_rotated(r, width));
  return r.offsets[k] >= 0 && bytes <= wire_bytes && r.offsets[k] <= wire_bytes - bytes;
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
  const std::int64_t step = r.dim >= elements ? 1 : elements / (r.dim > 0 ? r.dim : 1);
  parallel_for((r.count + step - 1) / step, threads, [&](std::int64_t chunk) {
    run(chunk * step, (chunk + 1) * step < r.count ? (chunk + 1) * step : r.count);
  });
}

std::uint32_t random_bits_of(const std::uint32_t words[4], std::int64_t j) {
  return words[j % 8 / 2] >> (j % 2 * 16) & 0xffffu;
}

void pack_codes(const float* row, const Records& r, std::int64_t k, const RowRange& range, std::uint8_t* record) {
  const int width = r.widths[k];
  const codec::Grid grid = codec::grid_of(range.minimum, range.maximum, width, r.one_sided);
  if (!r.one_sided) {
    write_u16(record, grid.offset_code);
    record += 2;
  }
  write_u16(record, grid.scale_code);
  BitWriter codes(record + 2, width);
  const std::uint32_t top = (1u << width) - 1;
  const std::uint32_t key[2] = {static_cast<std::uint32_t>(r.stream.seed),
                                static_cast<std::uint32_t>(r.stream.seed >> 32)};
  std::uint32_t words[4] = {};
  for (std::int64_t j = 0; j < r.dim; ++j) {
    if (r.rounding != Rounding::nearest && j % 8 == 0) {
      const std::uint32_t counter[4] = {static_cast<std::uint32_t>(j / 8), static_cast<std::uint32_t>(r.nodes[k]),
                                        r.stream.epoch,
                                        r.stream.tag | (static_cast<std::uint32_t>(r.nodes[k] >> 32) & 0xffu)};
      codec::philox_block(key, counter, words);
    }
    const std::uint32_t random = r.rounding == Rounding::nearest ? codec::nearest_bits : random_bits_of(words, j);
    const auto fraction = static_cast<std::int32_t>(__builtin_rintf((row[j] - grid.offset) * grid.inverse));
    codes.put(codec::code_of(fraction, random, top));
  }
  codes.finish();
}

// Returns false for a row that cannot be sent.
bool pack_row(const Pack& p, std::int64_t k) {
  const Records& r = p.records;
  const float* const row = p.in + row_of(p.index, k) * p.in_stride;
  std::uint8_t* const record = p.wire + r.offsets[k];
  const int width = r.widths[k];
  RowRange range{};
  if (width < 32 || p.ranges != nullptr)
    range = range_of(row, r.dim, r.one_sided && width < 16,
                     is_rotated(r, width) ? codec::rotated_magnitude_limit : codec::magnitude_limit);
  if (p.ranges != nullptr) p.ranges[k] = (r.one_sided ? range.maximum : range.maximum - range.minimum) + 0.0f;
  if (width == 32) {
    std::memcpy(record, row, static_cast<std::size_t>(r.dim) * sizeof(float));
    return true;
  }
  if (!range.sendable) return false;
  if (width == 16)
    for (std::int64_t j = 0; j < r.dim; ++j) write_u16(record + 2 * j, codec::bfloat16_of(row[j]));
  else if (is_rotated(r, width))
    pack_rotated(row, r, r.nodes[k], width, record);
  else
    pack_codes(row, r, k, range, record);
  return true;
}

std::int64_t pack(const Pack& p, int threads) {
  Offender offender;
  for_row_chunks(p.records, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k)
      if (!pack_row(p, k)) offender.complain(k);
  });
  return offender.row();
}

template <bool accumulate>
void unpack_row(const Unpack& u, std::int64_t k) {
  const Records& r = u.records;
  const std::uint8_t* record = u.wire + r.offsets[k];
  float* const out = u.out + row_of(u.index, k) * u.out_stride;
  const int width = r.widths[k];
  const auto put = [&](std::int64_t j, float value) { out[j] = accumulate ? out[j] + value : value; };
  if (width == 32) {
    for (std::int64_t j = 0; j < r.dim; ++j) {
      float value;
      std::memcpy(&value, record + 4 * j, sizeof value);
      put(j, value);
    }
  } else if (width == 16) {
    for (std::int64_t j = 0; j < r.dim; ++j) put(j, codec::float_of_bfloat16(read_u16(record + 2 * j)));
  } else if (is_rotated(r, width)) {
    unpack_rotated<accumulate>(record, r, r.nodes[k], width, out);
  } else {
    float offset = 0.0f;
    if (!r.one_sided) {
      offset = codec::decoded_offset(read_u16(record));
      record += 2;
    }
    const float scale = codec::decoded_scale(read_u16(record));
    BitReader codes(record + 2, width);
    for (std::int64_t j = 0; j < r.dim; ++j) put(j, codec::decode(offset, scale, codes.get()));
  }
}

std::int64_t unpack(const Unpack& u, int threads) {
  Offender offender;
  for_row_chunks(u.records, threads, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t k = first; k < last; ++k)
      if (!lies_within(u.records, k, u.wire_bytes))
        offender.complain(k);
      else if (u.accumulate)
        unpack_row<true>(u, k);
      else
        unpack_row<false>(u, k);
  });
  return offender.row();
}

}  // namespace

const CodecTable* codec_table() {
  static constexpr CodecTable codec{pack, unpack};
  return &codec;
}

}  // namespace halocast::HALOCAST_ISA
