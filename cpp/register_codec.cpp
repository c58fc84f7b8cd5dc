#include <cstring>

#include "codec.h"
#include "codec_core.h"
#include "register.h"

namespace halocast {
namespace {

// Copies the prepared headers to where their messages start and adds what changes from call to call.
void write_headers(const std::uint8_t* headers, const std::int64_t* offsets, std::int64_t count,
                   const RandomStream& stream, std::uint8_t* wire) {
  constexpr int tag_at = 4, epoch_at = 8;
  for (std::int64_t i = 0; i < count; ++i) {
    std::uint8_t* const to = wire + offsets[i];
    std::memcpy(to, headers + i * codec::header_bytes, codec::header_bytes);
    std::uint32_t tag;
    std::memcpy(&tag, to + tag_at, sizeof tag);  // the flags
    tag |= stream.tag;
    std::memcpy(to + tag_at, &tag, sizeof tag);
    std::memcpy(to + epoch_at, &stream.epoch, sizeof stream.epoch);
  }
}

RowIndex row_index(bool is_index64, Address index) {
  return {is_index64 ? nullptr : pointer<const std::int32_t>(index),
          is_index64 ? pointer<const std::int64_t>(index) : nullptr};
}

}  // namespace

// pack_cuda and unpack_cuda, where they are built, take the same arguments in the same order, with the CUDA stream's
// address in the place of threads; every address is then one of the device's.
void register_codec(py::module_& module) {
  module.def(
      "pack",
      [](Address rows, std::int64_t rows_stride, bool is_index64, Address index, Address wire, std::int64_t wire_bytes,
         Address widths, Address offsets, std::int64_t count, std::int64_t dim, bool one_sided, int rounding,
         std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag, Address nodes, Address headers,
         Address header_offsets, std::int64_t messages, Address ranges, int threads) {
        const py::gil_scoped_release unlocked;
        const RandomStream stream{seed, epoch, tag};
        write_headers(pointer<const std::uint8_t>(headers), pointer<const std::int64_t>(header_offsets), messages, stream,
                      pointer<std::uint8_t>(wire));
        return codec_kernels().pack({{pointer<const std::uint8_t>(widths), pointer<const std::int64_t>(offsets), count, dim,
                              one_sided, static_cast<Rounding>(rounding), stream, pointer<const std::int64_t>(nodes)},
                             pointer<const float>(rows),
                             rows_stride,
                             row_index(is_index64, index),
                             pointer<std::uint8_t>(wire),
                             wire_bytes,
                             pointer<float>(ranges)},
                            threads);
      },
      py::arg("rows"), py::arg("rows_stride"), py::arg("is_index64"), py::arg("index"), py::arg("wire"),
      py::arg("wire_bytes"), py::arg("widths"), py::arg("offsets"), py::arg("count"), py::arg("dim"),
      py::arg("one_sided"), py::arg("rounding"), py::arg("seed"), py::arg("epoch"), py::arg("tag"), py::arg("nodes"),
      py::arg("headers"), py::arg("header_offsets"), py::arg("messages"), py::arg("ranges"), py::arg("threads"));

  module.def(
      "unpack",
      [](Address wire, std::int64_t wire_bytes, Address widths, Address offsets, std::int64_t count, std::int64_t dim,
         bool one_sided, int rounding, std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag, Address nodes,
         Address out, std::int64_t out_stride, bool is_index64, Address index, bool accumulate, int threads) {
        const py::gil_scoped_release unlocked;
        return codec_kernels().unpack({{pointer<const std::uint8_t>(widths), pointer<const std::int64_t>(offsets), count, dim,
                                one_sided, static_cast<Rounding>(rounding), {seed, epoch, tag},
                                pointer<const std::int64_t>(nodes)},
                               pointer<const std::uint8_t>(wire),
                               wire_bytes,
                               pointer<float>(out),
                               out_stride,
                               row_index(is_index64, index),
                               accumulate},
                              threads);
      },
      py::arg("wire"), py::arg("wire_bytes"), py::arg("widths"), py::arg("offsets"), py::arg("count"), py::arg("dim"),
      py::arg("one_sided"), py::arg("rounding"), py::arg("seed"), py::arg("epoch"), py::arg("tag"), py::arg("nodes"),
      py::arg("out"), py::arg("out_stride"), py::arg("is_index64"), py::arg("index"), py::arg("accumulate"),
      py::arg("threads"));
}

}  // namespace halocast
