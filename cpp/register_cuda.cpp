// Built only with a CUDA compiler. The launches return at once: what they find is read from first_bad, after a wait.
#include <stdexcept>

#include "cuda/launch.h"
#include "register.h"

namespace halocast {
namespace {

RowIndex row_index(bool is_index64, Address index) {
  return {is_index64 ? nullptr : pointer<const std::int32_t>(index),
          is_index64 ? pointer<const std::int64_t>(index) : nullptr};
}

}  // namespace

// As pack and unpack of register_codec.cpp, with two arguments in the place of threads. Every address is one of the
// current device's, stream a cudaStream_t. first_bad: int64, lowered to the first row in the wrong; start it at count.
void register_cuda(py::module_& module) {
  module.attr("cuda_codec") = true;

  module.def(
      "pack_cuda",
      [](Address rows, std::int64_t rows_stride, bool is_index64, Address index, Address wire, std::int64_t wire_bytes,
         Address widths, Address offsets, std::int64_t count, std::int64_t dim, bool one_sided, int rounding,
         std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag, Address nodes, Address headers,
         Address header_offsets, std::int64_t messages, Address ranges, Address first_bad, Address stream) {
        const py::gil_scoped_release unlocked;
        const Records records{pointer<const std::uint8_t>(widths),
                              pointer<const std::int64_t>(offsets),
                              count,
                              dim,
                              one_sided,
                              static_cast<Rounding>(rounding),
                              {seed, epoch, tag},
                              pointer<const std::int64_t>(nodes)};
        const Pack pack{records,
                        pointer<const float>(rows),
                        rows_stride,
                        row_index(is_index64, index),
                        pointer<std::uint8_t>(wire),
                        wire_bytes,
                        pointer<float>(ranges)};
        codec::launch({pack, pointer<const std::uint8_t>(headers), pointer<const std::int64_t>(header_offsets),
                       messages, pointer<std::int64_t>(first_bad)},
                      stream);
      },
      py::arg("rows"), py::arg("rows_stride"), py::arg("is_index64"), py::arg("index"), py::arg("wire"),
      py::arg("wire_bytes"), py::arg("widths"), py::arg("offsets"), py::arg("count"), py::arg("dim"),
      py::arg("one_sided"), py::arg("rounding"), py::arg("seed"), py::arg("epoch"), py::arg("tag"), py::arg("nodes"),
      py::arg("headers"), py::arg("header_offsets"), py::arg("messages"), py::arg("ranges"), py::arg("first_bad"),
      py::arg("stream"));

  module.def(
      "unpack_cuda",
      [](Address wire, std::int64_t wire_bytes, Address widths, Address offsets, std::int64_t count, std::int64_t dim,
         bool one_sided, int rounding, std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag, Address nodes,
         Address out, std::int64_t out_stride, bool is_index64, Address index, bool accumulate, Address first_bad,
         Address stream) {
        const py::gil_scoped_release unlocked;
        const Records records{pointer<const std::uint8_t>(widths),
                              pointer<const std::int64_t>(offsets),
                              count,
                              dim,
                              one_sided,
                              static_cast<Rounding>(rounding),
                              {seed, epoch, tag},
                              pointer<const std::int64_t>(nodes)};
        const Unpack unpack{records,    pointer<const std::uint8_t>(wire), wire_bytes, pointer<float>(out),
                            out_stride, row_index(is_index64, index),      accumulate};
        codec::launch({unpack, pointer<std::int64_t>(first_bad)}, stream);
      },
      py::arg("wire"), py::arg("wire_bytes"), py::arg("widths"), py::arg("offsets"), py::arg("count"), py::arg("dim"),
      py::arg("one_sided"), py::arg("rounding"), py::arg("seed"), py::arg("epoch"), py::arg("tag"), py::arg("nodes"),
      py::arg("out"), py::arg("out_stride"), py::arg("is_index64"), py::arg("index"), py::arg("accumulate"),
      py::arg("first_bad"), py::arg("stream"));
}

}  // namespace halocast
