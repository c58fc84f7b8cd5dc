// Packing: a row belongs to `lanes` lanes of a warp, which take turns at its groups of eight elements.
#pragma once

#include "rows.h"
#include "wire.h"

namespace halocast::codec {

// Shared memory for the record of one row, or for what a chunk of a longer row gives, in any phase.
template <int lanes>
constexpr int row_staging = lanes * groups_at_once * group_values + 2 * piece_bytes;

template <int lanes>
constexpr int warp_staging = warp_lanes / lanes * row_staging<lanes>;

// What a lane knows of its row.
struct PackedRow {
  const float* values;
  std::int64_t number;
  std::int64_t offset;  // of its record on the wire
  std::int64_t node;
  int lane;    // 0 to lanes - 1
  int groups;  // 0: there is no such row, or it is not to be packed
  int width;
};

// The lanes of rows that do not exist follow the last row, and pack nothing.
template <int lanes>
HALOCAST_DEVICE PackedRow packed_row(const PackJob& job, std::int64_t first_row, int lane) {
  const Records& records = job.pack.records;
  const std::int64_t number = first_row + lane / lanes;
  const bool exists = number < records.count;
  PackedRow row;
  row.lane = lane % lanes;
  row.number = exists ? number : records.count - 1;
  row.values = settled(job.pack.in + row_of(job.pack.index, row.number) * job.pack.in_stride);
  row.offset = load_constant_as<std::int64_t>(records.offsets + row.number);
  row.node = load_constant_as<std::int64_t>(records.nodes + row.number);
  row.groups = exists ? static_cast<int>((records.dim + group_values - 1) / group_values) : 0;
  row.width = load_constant_as<std::uint8_t>(records.widths + row.number);
  return row;
}

// A lane's groups of one chunk of a row: of lanes * groups_at_once groups.
struct GroupValues {
  float of[groups_at_once][group_values];
};

// What a row does not have is filled up with other values of it, which changes no range: no load waits for another, nor
// for a branch. dim is a multiple of vector.
template <int lanes, int vector>
HALOCAST_DEVICE void load_groups(const PackedRow& row, int dim, int first_group, GroupValues& values) {
  const int last_group = (dim - 1) / group_values;
#pragma unroll
  for (int i = 0; i < groups_at_once; ++i) {
    if (first_group + i * lanes > last_group) break;  // for all lanes
    const int group = first_group + i * lanes + row.lane;
    const int first = (group < last_group ? group : last_group) * group_values;
#pragma unroll
    for (int j = 0; j < group_values; j += vector)
      load_constant_vector<vector>(row.values + first + (first + j < dim ? j : 0), values.of[i] + j);
  }
}

// The lowest and the highest value so far; NaN once there was one.
template <int lanes>
HALOCAST_DEVICE void fold_groups(int dim, int first_group, const GroupValues& values, float& low, float& high) {
#pragma unroll
  for (int i = 0; i < groups_at_once; ++i) {
    if ((first_group + i * lanes) * group_values >= dim) break;
#pragma unroll
    for (int j = 0; j < group_values; ++j) {
      low = lower_or_nan(low, values.of[i][j]);
      high = higher_or_nan(high, values.of[i][j]);
    }
  }
}

// NaN compares false.
HALOCAST_DEVICE bool lies_below(float low, float high, std::uint32_t limit) {
  return low > -float_of(limit) && high < float_of(limit);
}

HALOCAST_DEVICE float range_of(float low, float high, bool one_sided) {
  return (one_sided ? high : high - low) + 0.0f;  // a zero is +0
}

// Codes of one group in the bits that they have on the wire.
HALOCAST_DEVICE std::uint64_t codes_of(const float values[group_values], const Grid& grid,
                                       const std::uint32_t random[4], int width) {
  const std::uint32_t top = (1u << width) - 1;
  const std::uint32_t place = 1u << width;
  std::uint32_t half[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    half[h] = 0;
#pragma unroll
    for (int j = 3; j >= 0; --j) {
      const std::uint32_t word = random[2 * h + j / 2];
      const std::int32_t fraction = round_to_int((values[4 * h + j] - grid.offset) * grid.inverse);
      half[h] = multiply_add(half[h], place, code_of(fraction, j % 2 != 0 ? word >> 16 : word & 0xffffu, top));
    }
  }
  return static_cast<std::uint64_t>(half[1]) << (4 * width) | half[0];
}

// at: where the codes of the chunk start.
template <int lanes>
HALOCAST_DEVICE void stage_coded(const PackJob& job, const PackedRow& row, int first_group, const GroupValues& values,
                                 const Grid& grid, std::uint8_t* staging, int at) {
  const Records& records = job.pack.records;
  const auto dim = static_cast<int>(records.dim);
#pragma unroll
  for (int i = 0; i < groups_at_once; ++i) {
    const int in_chunk = i * lanes + row.lane;
    const int group = first_group + in_chunk;
    if (group >= row.groups) continue;
    std::uint32_t random[4];
    if (records.rounding == Rounding::nearest)
      random[0] = random[1] = random[2] = random[3] = nearest_bits << 16 | nearest_bits;
    else
      random_block(records.stream, job.keys, row.node, static_cast<std::uint32_t>(group), random);
    std::uint64_t codes = codes_of(values.of[i], grid, random, row.width);
    const int present = dim - group * group_values;
    int bytes = row.width;
    if (present < group_values) {
      codes &= (std::uint64_t{1} << (present * row.width)) - 1;
      bytes = (present * row.width + 7) / 8;
    }
    stage_codes(staging, at + in_chunk * row.width, codes, bytes);
  }
}

HALOCAST_DEVICE void stage_side(const Records& records, const Grid& grid, std::uint8_t* to) {
  if (!records.one_sided) stage_u16(to, grid.offset_code);
  stage_u16(to + (records.one_sided ? 0 : 2), grid.scale_code);
}

// Rows of width 16 and 32.
HALOCAST_DEVICE void stage_plain(const float values[group_values], int width, std::uint8_t* to) {
#pragma unroll
  for (int j = 0; j < group_values; j += 2)
    if (width == 32) {
      stage_u32(to + 4 * j, bits_of(values[j]));
      stage_u32(to + 4 * j + 4, bits_of(values[j + 1]));
    } else {
      stage_u32(to + 2 * j, static_cast<std::uint32_t>(bfloat16_of(values[j + 1])) << 16 | bfloat16_of(values[j]));
    }
}

// Of a row of codes.
HALOCAST_DEVICE int coded_bytes(const Records& records, int width) {
  return (records.one_sided ? 2 : 4) + (static_cast<int>(records.dim) * width + 7) / 8;
}

// Whether something else than the next row's record follows that of a row of codes.
HALOCAST_DEVICE bool ends_run(const Records& records, const PackedRow& row) {
  return load_constant_as<std::int64_t>(records.offsets + row.number + 1) !=
         row.offset + coded_bytes(records, row.width);
}

// The coded rows of a warp whose records are not one run: row after row. The memory of each is its own.
template <int lanes>
HALOCAST_DEVICE void write_scattered(const Warp& warp, const PackJob& job, std::int64_t first_row,
                                     const std::uint8_t* staging) {
  const Records& records = job.pack.records;
#pragma unroll 1
  for (int i = 0; i < warp_lanes / lanes && first_row + i < records.count; ++i) {
    const std::int64_t row = first_row + i;
    const int width = load_constant_as<std::uint8_t>(records.widths + row);
    if (width >= 16 || is_rotated(records, width)) continue;
    std::uint8_t* const record = job.pack.wire + load_constant_as<std::int64_t>(records.offsets + row);
    warp.each([&](int lane) {
      copy_to_wire(record, staging + i * row_staging<lanes> + phase_of(record), coded_bytes(records, width), lane);
    });
  }
}

// Elements [first, first + lanes * group_values) of the rows of width 16 and 32, which `values` has.
template <int lanes>
HALOCAST_DEVICE void write_plain(const Warp& warp, const PackJob& job, std::int64_t first_row, int first, int i,
                                 PerLane<PackedRow>& row, PerLane<GroupValues>& values, std::uint8_t* staging) {
  const Records& records = job.pack.records;
  const auto dim = static_cast<int>(records.dim);
  const auto place = [&](std::uint8_t* record, int width) { return record + std::int64_t{first} * width / 8; };
  warp.each([&](int lane) {
    const PackedRow& r = row[lane];
    if (r.width < 16 || first / group_values + r.lane >= r.groups) return;
    std::uint8_t* const to =
        staging + lane / lanes * row_staging<lanes> + phase_of(place(job.pack.wire + r.offset, r.width));
    stage_plain(values[lane].of[i], r.width, to + r.lane * group_values * r.width / 8);
  });
  const int present = dim - first < lanes * group_values ? dim - first : lanes * group_values;
#pragma unroll 1
  for (int k = 0; k < warp_lanes / lanes && first_row + k < records.count; ++k) {
    const int width = load_constant_as<std::uint8_t>(records.widths + first_row + k);
    if (width < 16 || present <= 0) continue;
    std::uint8_t* const to =
        place(job.pack.wire + load_constant_as<std::int64_t>(records.offsets + first_row + k), width);
    warp.each([&](int lane) {
      copy_to_wire(to, staging + k * row_staging<lanes> + phase_of(to), present * width / 8, lane);
    });
  }
}

// Packs the warp_lanes / lanes rows from first_row on. whole: lanes hold their rows in registers; else rows are read
// twice.
template <int lanes, int vector, bool whole>
HALOCAST_DEVICE void pack_rows(const Warp& warp, const PackJob& job, std::int64_t first_row, std::uint8_t* staging) {
  constexpr int chunk_groups = lanes * groups_at_once;
  const Records& records = job.pack.records;
  const auto dim = static_cast<int>(records.dim);
  const int side_bytes = records.one_sided ? 2 : 4;
  // Of the loops over chunks, whose counter is their first group.
  const int end = whole ? 1 : (dim + group_values - 1) / group_values;

  PerLane<PackedRow> row;
  PerLane<GroupValues> values;
  PerLane<float> low, high;
  PerLane<Grid> grid;
  PerLane<bool> is_plain, is_odd;

  warp.each([&](int lane) {
    row[lane] = packed_row<lanes>(job, first_row, lane);
    low[lane] = float_of(0x7f800000u);
    high[lane] = float_of(0xff800000u);
    for (int chunk = 0; chunk < end; chunk += chunk_groups) {
      load_groups<lanes, vector>(row[lane], dim, chunk, values[lane]);
      fold_groups<lanes>(dim, chunk, values[lane], low[lane], high[lane]);
    }
  });
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    warp.combine(low, distance, [](float a, float b) { return lower_or_nan(a, b); });
    warp.combine(high, distance, [](float a, float b) { return higher_or_nan(a, b); });
  }

  const std::int64_t past_row = first_row + warp_lanes / lanes;
  const std::int64_t last_row = (past_row < records.count ? past_row : records.count) - 1;
  warp.each([&](int lane) {
    PackedRow& r = row[lane];
    is_plain[lane] = is_odd[lane] = false;
    if (r.groups == 0) return;
    if (job.pack.ranges != nullptr && r.lane == 0)
      job.pack.ranges[r.number] = range_of(low[lane], high[lane], records.one_sided);
    is_plain[lane] = r.width >= 16;
    const bool is_another_kernels = is_rotated(records, r.width);
    is_odd[lane] = is_plain[lane] || is_another_kernels || (r.number < last_row && ends_run(records, r));
    const bool may_be_negative = !records.one_sided || is_plain[lane];
    const bool is_sendable =
        r.width == 32 || (lies_below(low[lane], high[lane], magnitude_limit) && (may_be_negative || low[lane] >= 0.0f));
    if (!is_sendable && !is_another_kernels && r.lane == 0) lower(job.first_bad, r.number);
    if (!is_sendable || is_another_kernels)
      r.groups = 0;
    else if (!is_plain[lane])
      grid[lane] = grid_of(low[lane], high[lane], r.width, records.one_sided);
  });
  const bool some_plain = warp.any(is_plain);
  const bool is_run = !warp.any(is_odd);  // all rows are coded, and their records follow each other
  const std::int64_t run = load_constant_as<std::int64_t>(records.offsets + first_row);

  for (int chunk = 0; chunk < end; chunk += chunk_groups) {
    // Of a record: what the chunk adds starts here.
    const auto start = [&](int width) { return chunk == 0 ? 0 : side_bytes + chunk * width; };
    warp.each([&](int lane) {
      const PackedRow& r = row[lane];
      if (!whole) load_groups<lanes, vector>(r, dim, chunk, values[lane]);
      if (r.groups == 0 || r.width >= 16) return;
      const std::int64_t first = (is_run ? run : r.offset) + start(r.width);
      const int at = phase_of(job.pack.wire + first) +
                     (is_run ? static_cast<int>(r.offset - run) : lane / lanes * row_staging<lanes>);
      if (chunk == 0 && r.lane == 0) stage_side(records, grid[lane], staging + at);
      stage_coded<lanes>(job, r, chunk, values[lane], grid[lane], staging, settled(chunk == 0 ? at + side_bytes : at));
    });
    if (is_run) {
      const int width = load_constant_as<std::uint8_t>(records.widths + last_row);
      const std::int64_t last = load_constant_as<std::int64_t>(records.offsets + last_row);
      const int left = static_cast<int>(last - run) + coded_bytes(records, width) - start(width);
      const int most = whole ? left : chunk_groups * width + (chunk == 0 ? side_bytes : 0);
      std::uint8_t* const to = job.pack.wire + run + start(width);
      warp.each([&](int lane) { copy_to_wire(to, staging + phase_of(to), left < most ? left : most, lane); });
    } else if (whole) {
      write_scattered<lanes>(warp, job, first_row, staging);
    }
    if (!some_plain) continue;
#pragma unroll
    for (int i = 0; i < groups_at_once; ++i)
      write_plain<lanes>(warp, job, first_row, (chunk + i * lanes) * group_values, i, row, values, staging);
  }
}

// A lane writes the header of one message.
HALOCAST_DEVICE void write_header(const PackJob& job, std::int64_t message) {
  constexpr int tag_at = 4, epoch_at = 8;
  const RandomStream& stream = job.pack.records.stream;
  const std::uint8_t* const header = job.headers + message * header_bytes;
  std::uint8_t* const to = job.pack.wire + load_constant_as<std::int64_t>(job.header_offsets + message);
  for (int i = 0; i < header_bytes; ++i) {
    std::uint8_t byte = load_constant_as<std::uint8_t>(header + i);
    if (i >= tag_at && i < tag_at + 4) byte |= static_cast<std::uint8_t>(stream.tag >> (8 * (i - tag_at)));
    if (i >= epoch_at && i < epoch_at + 4) byte = static_cast<std::uint8_t>(stream.epoch >> (8 * (i - epoch_at)));
    to[i] = byte;
  }
}

}  // namespace halocast::codec
