// Packing: a row belongs to `lanes` lanes of a warp, which take turns at its groups of eight elements.
#pragma once

#include "wire.h"

namespace halocast::codec {

// Shared memory of one row: its side information ends, and its codes start, at codes_at; a word may be read beyond them.
constexpr int codes_at = 8;

template <int lanes>
constexpr int row_staging = codes_at + lanes * groups_at_once * group_values + 8;

template <int lanes>
constexpr int warp_staging = warp_lanes / lanes* row_staging<lanes>;

// What a lane knows of its row.
struct PackedRow {
  const float* values;
  std::uint8_t* record;
  std::uint8_t* staging;
  std::int64_t number;
  RandomRow random;
  int lane;    // 0 to lanes - 1
  int groups;  // 0: there is no such row
  int width;
};

template <int lanes>
HALOCAST_DEVICE PackedRow packed_row(const PackJob& job, std::int64_t first_row, int lane, std::uint8_t* staging) {
  const Records& records = job.pack.records;
  PackedRow row{};
  row.lane = lane % lanes;
  row.number = first_row + lane / lanes;
  row.staging = staging + lane / lanes * row_staging<lanes>;
  if (row.number >= records.count) return row;
  row.values = job.pack.in + row_of(job.pack.index, row.number) * job.pack.in_stride;
  row.record = job.pack.wire + load_constant_as<std::int64_t>(records.offsets + row.number);
  row.random = random_row_of(records, row.number);
  row.groups = static_cast<int>((records.dim + group_values - 1) / group_values);
  row.width = load_constant_as<std::uint8_t>(records.widths + row.number);
  return row;
}

// A lane's groups of one chunk of a row: of lanes * groups_at_once groups.
struct GroupValues {
  float of[groups_at_once][group_values];
};

template <int vector>
HALOCAST_DEVICE void load_vector(const float* from, float* to) {
  if (vector == 4) {
    const Quad quad = load_constant_as<Quad>(from);
    to[0] = quad.x, to[1] = quad.y, to[2] = quad.z, to[3] = quad.w;
  } else if (vector == 2) {
    const Pair pair = load_constant_as<Pair>(from);
    to[0] = pair.x, to[1] = pair.y;
  } else {
    to[0] = load_constant_as<float>(from);
  }
}

// The end of a row is filled up with an element of the same group, which changes no range. dim is a multiple of vector.
template <int lanes, int vector>
HALOCAST_DEVICE void load_groups(const PackedRow& row, int dim, int first_group, GroupValues& values) {
#pragma unroll
  for (int i = 0; i < groups_at_once; ++i) {
    const int group = first_group + i * lanes + row.lane;
    if (group >= row.groups) continue;
    const float* const from = row.values + group * group_values;
    const int present = dim - group * group_values;
#pragma unroll
    for (int j = 0; j < group_values; j += vector)
      if (j < present)
        load_vector<vector>(from + j, values.of[i] + j);
      else
        for (int k = 0; k < vector; ++k) values.of[i][j + k] = values.of[i][0];
  }
}

// Lowest and highest value of a row; NaN if one of its values is.
struct Extremes {
  float low, high;
};

template <int lanes>
HALOCAST_DEVICE void fold_groups(const PackedRow& row, int first_group, const GroupValues& values, float& low,
                                 float& high) {
#pragma unroll
  for (int i = 0; i < groups_at_once; ++i) {
    if (first_group + i * lanes + row.lane >= row.groups) continue;
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
HALOCAST_DEVICE std::uint64_t codes_of(const float values[group_values], const Grid& grid, const std::uint32_t random[4],
                                       int width) {
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
      half[h] = half[h] * place + code_of(fraction, j % 2 != 0 ? word >> 16 : word & 0xffffu, top);
    }
  }
  return static_cast<std::uint64_t>(half[1]) << (4 * width) | half[0];
}

template <int lanes>
HALOCAST_DEVICE void stage_coded(const PackJob& job, const PackedRow& row, int first_group, const GroupValues& values,
                                 const Grid& grid) {
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
      random_block(records, row.random, static_cast<std::uint32_t>(group), random);
    std::uint64_t codes = codes_of(values.of[i], grid, random, row.width);
    const int present = dim - group * group_values;
    if (present < group_values) codes &= (std::uint64_t{1} << (present * row.width)) - 1;
    stage_codes(row.staging + codes_at + in_chunk * row.width, codes, row.width);
  }
}

// Rows of width 16 and 32 go in pieces of lanes groups, as many as the staging of codes holds.
HALOCAST_DEVICE void stage_plain(const PackedRow& row, const float values[group_values]) {
  std::uint8_t* const to = row.staging + codes_at + row.lane * group_values * row.width / 8;
#pragma unroll
  for (int j = 0; j < group_values; j += 2)
    if (row.width == 32)
      store_as(to + 4 * j, static_cast<std::uint64_t>(bits_of(values[j + 1])) << 32 | bits_of(values[j]));
    else
      store_as(to + 2 * j, static_cast<std::uint32_t>(bfloat16_of(values[j + 1])) << 16 | bfloat16_of(values[j]));
}

// Packs the warp_lanes / lanes rows from first_row on. whole: lanes hold their rows in registers; else rows are read twice.
template <int lanes, int vector, bool whole>
HALOCAST_DEVICE void pack_rows(const Warp& warp, const PackJob& job, std::int64_t first_row, std::uint8_t* staging) {
  constexpr int chunk_groups = lanes * groups_at_once;
  const Records& records = job.pack.records;
  const auto dim = static_cast<int>(records.dim);
  const int row_groups = (dim + group_values - 1) / group_values;
  const int end = whole ? 1 : row_groups;  // of the loop over chunks, whose first group is its counter

  PerLane<PackedRow> row;
  PerLane<GroupValues> values;
  PerLane<float> low, high;
  PerLane<Grid> grid;
  PerLane<bool> is_plain;

  warp.each([&](int lane) {
    row[lane] = packed_row<lanes>(job, first_row, lane, staging);
    low[lane] = float_of(0x7f800000u);
    high[lane] = float_of(0xff800000u);
    for (int chunk = 0; chunk < end; chunk += chunk_groups) {
      load_groups<lanes, vector>(row[lane], dim, chunk, values[lane]);
      fold_groups<lanes>(row[lane], chunk, values[lane], low[lane], high[lane]);
    }
  });
#pragma unroll
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    warp.combine(low, distance, [](float a, float b) { return lower_or_nan(a, b); });
    warp.combine(high, distance, [](float a, float b) { return higher_or_nan(a, b); });
  }

  warp.each([&](int lane) {
    PackedRow& r = row[lane];
    is_plain[lane] = r.width >= 16;
    if (r.groups == 0) return;
    if (job.pack.ranges != nullptr && r.lane == 0)
      job.pack.ranges[r.number] = range_of(low[lane], high[lane], records.one_sided);
    if (is_rotated(records, r.width)) {  // another kernel's
      r.width = r.groups = 0;
      return;
    }
    const bool may_be_negative = !records.one_sided || r.width >= 16;
    const bool sendable = r.width == 32 || (lies_below(low[lane], high[lane], magnitude_limit) &&
                                            (may_be_negative || low[lane] >= 0.0f));
    if (!sendable) {
      if (r.lane == 0) lower(job.first_bad, r.number);
      r.width = r.groups = 0;
    } else if (r.width < 16) {
      grid[lane] = grid_of(low[lane], high[lane], r.width, records.one_sided);
      if (r.lane == 0) {
        stage_u16(r.staging + codes_at - 2, grid[lane].scale_code);
        if (!records.one_sided) stage_u16(r.staging + codes_at - 4, grid[lane].offset_code);
      }
    }
  });
  const bool some_plain = warp.any(is_plain);
  const int side_bytes = records.one_sided ? 2 : 4;

  for (int chunk = 0; chunk < end; chunk += chunk_groups) {
    warp.each([&](int lane) {
      if (!whole) load_groups<lanes, vector>(row[lane], dim, chunk, values[lane]);
      if (row[lane].width < 16) stage_coded<lanes>(job, row[lane], chunk, values[lane], grid[lane]);
    });
    warp.each([&](int lane) {
      const PackedRow& r = row[lane];
      if (r.groups == 0 || r.width >= 16) return;
      const int elements = dim - chunk * group_values;
      const int present = elements < chunk_groups * group_values ? elements : chunk_groups * group_values;
      const int side = chunk == 0 ? side_bytes : 0;
      const int before = chunk == 0 ? 0 : side_bytes + chunk * r.width;
      copy_to_wire(r.record + before, r.staging + codes_at - side, side + (present * r.width + 7) / 8, r.lane, lanes);
    });
    if (!some_plain) continue;
#pragma unroll
    for (int i = 0; i < groups_at_once; ++i) {
      const int first_group = chunk + i * lanes;
      warp.each([&](int lane) {
        const PackedRow& r = row[lane];
        if (r.width >= 16 && first_group + r.lane < r.groups) stage_plain(r, values[lane].of[i]);
      });
      warp.each([&](int lane) {
        const PackedRow& r = row[lane];
        if (r.width < 16 || first_group >= r.groups) return;
        const int elements = dim - first_group * group_values;
        const int present = elements < lanes * group_values ? elements : lanes * group_values;
        copy_to_wire(r.record + static_cast<std::int64_t>(first_group) * group_values * r.width / 8,
                     r.staging + codes_at, present * r.width / 8, r.lane, lanes);
      });
    }
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
