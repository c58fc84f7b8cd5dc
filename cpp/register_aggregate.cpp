#include "register.h"

namespace halocast {

void register_aggregate(py::module_& module) {
  module.def(
      "aggregate",
      [](bool is_double, Address begin, Address end, Address index, Address value, Address row_scale,
         Address column_scale, Address in, std::int64_t in_stride, Address out, std::int64_t out_stride,
         std::int64_t first_row, std::int64_t last_row, std::int64_t dim, bool accumulate, int threads) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          kernels().of<T>().aggregate(
              {pointer<const std::int64_t>(begin), pointer<const std::int64_t>(end), pointer<const std::int32_t>(index),
               pointer<const T>(value), pointer<const T>(row_scale), pointer<const T>(column_scale),
               pointer<const T>(in), in_stride, pointer<T>(out), out_stride, first_row, last_row, dim, accumulate},
              threads);
        });
      },
      py::arg("is_double"), py::arg("begin"), py::arg("end"), py::arg("index"), py::arg("value"), py::arg("row_scale"),
      py::arg("column_scale"), py::arg("features"), py::arg("features_stride"), py::arg("out"), py::arg("out_stride"),
      py::arg("first_row"), py::arg("last_row"), py::arg("dim"), py::arg("accumulate"), py::arg("threads"));
}

}  // namespace halocast
