// The kernels on a host: each warp in turn, its lanes one after the other through each phase (lanes.h). For tests only:
// the bytes are those of the GPU, except where memory is ordered or shared in ways that the phases do not show.
//   g++ -std=c++17 -O1 -ffp-contract=off -shared -fPIC -o emulate.so emulate.cpp
// Errors come back as false. Arguments are those of register_cuda.cpp, without a stream and with the order of the
// lanes.
#include <vector>

#include "rotate.h"

namespace halocast::codec {
namespace {

struct alignas(piece_bytes) Piece {
  std::uint8_t bytes[piece_bytes];
};
using Memory = std::vector<Piece>;

Memory shared_memory(int bytes) {
  return Memory(static_cast<std::size_t>((bytes + piece_bytes - 1) / piece_bytes), Piece{{0xa5, 0x5a}});
}

std::uint8_t* bytes_of(Memory& memory) { return memory.data()->bytes; }

// Calls run(row, memory) for each row in the memory that a warp has for a row of the rotated codec; false: too long.
template <class Run>
bool for_rotated_rows(const Records& records, const Run& run) {
  if (records.rounding != Rounding::rotated) return true;
  if (records.dim > shared_rotated_dim) return false;
  const auto dim = static_cast<int>(records.dim);
  for (std::int64_t row = 0; row < records.count; ++row) {
    Memory memory = shared_memory(rotated_bytes(dim));
    run(row, rotated_memory(bytes_of(memory), dim));
  }
  return true;
}

bool emulate(const PackJob& job, const Warp& warp) {
  const Records& records = job.pack.records;
  with_shape(pack_shape(job.pack), [&](auto fixed) {
    using Fixed = decltype(fixed);
    for (std::int64_t row = 0; row < records.count; row += warp_lanes / Fixed::lanes) {
      Memory staging = shared_memory(warp_staging<Fixed::lanes>);
      pack_rows<Fixed::lanes, Fixed::vector, Fixed::whole>(warp, job, row, bytes_of(staging));
    }
  });
  for (std::int64_t message = 0; message < job.messages; ++message) write_header(job, message);
  return for_rotated_rows(records,
                          [&](std::int64_t row, const RotatedMemory& memory) { pack_rotated(warp, job, row, memory); });
}

bool emulate(const UnpackJob& job, const Warp& warp) {
  const Records& records = job.unpack.records;
  with_shape(unpack_shape(job.unpack), [&](auto fixed) {
    using Fixed = decltype(fixed);
    for (std::int64_t row = 0; row < records.count; ++row)
      for (int lane = 0; lane < Fixed::lanes; ++lane)
        if (job.unpack.accumulate)
          unpack_row<Fixed::lanes, Fixed::vector, true>(job, row, lane);
        else
          unpack_row<Fixed::lanes, Fixed::vector, false>(job, row, lane);
  });
  return for_rotated_rows(
      records, [&](std::int64_t row, const RotatedMemory& memory) { unpack_rotated(warp, job, row, memory); });
}

RowIndex row_index(bool is_index64, const void* index) {
  return {is_index64 ? nullptr : static_cast<const std::int32_t*>(index),
          is_index64 ? static_cast<const std::int64_t*>(index) : nullptr};
}

}  // namespace
}  // namespace halocast::codec

using namespace halocast;

extern "C" bool emulate_pack(const float* rows, std::int64_t rows_stride, bool is_index64, const void* index,
                             std::uint8_t* wire, std::int64_t wire_bytes, const std::uint8_t* widths,
                             const std::int64_t* offsets, std::int64_t count, std::int64_t dim, bool one_sided,
                             int rounding, std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag,
                             const std::int64_t* nodes, const std::uint8_t* headers, const std::int64_t* header_offsets,
                             std::int64_t messages, float* ranges, std::int64_t* first_bad, int turn, int step) {
  const Records records{widths, offsets, count, dim, one_sided, static_cast<Rounding>(rounding), {seed, epoch, tag},
                        nodes};
  const Pack pack{records, rows, rows_stride, codec::row_index(is_index64, index), wire, wire_bytes, ranges};
  return codec::emulate(codec::PackJob{pack, headers, header_offsets, messages, first_bad}, codec::Warp(turn, step));
}

extern "C" bool emulate_unpack(const std::uint8_t* wire, std::int64_t wire_bytes, const std::uint8_t* widths,
                               const std::int64_t* offsets, std::int64_t count, std::int64_t dim, bool one_sided,
                               int rounding, std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag,
                               const std::int64_t* nodes, float* out, std::int64_t out_stride, bool is_index64,
                               const void* index, bool accumulate, std::int64_t* first_bad, int turn, int step) {
  const Records records{widths, offsets, count, dim, one_sided, static_cast<Rounding>(rounding), {seed, epoch, tag},
                        nodes};
  const Unpack unpack{records, wire, wire_bytes, out, out_stride, codec::row_index(is_index64, index), accumulate};
  return codec::emulate(codec::UnpackJob{unpack, first_bad}, codec::Warp(turn, step));
}
