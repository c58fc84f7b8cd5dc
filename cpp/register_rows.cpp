#include <vector>

#include "register.h"

namespace halocast {
namespace {

// The two ways of moving rows share arguments and index types.
template <class Kernel32, class Kernel64>
void register_move(py::module_& module, const char* name, const Kernel32& kernel32, const Kernel64& kernel64) {
  module.def(
      name,
      [=](bool is_double, bool is_index64, Address in, std::int64_t in_stride, Address index, std::int64_t count,
          std::int64_t dim, Address out, std::int64_t out_stride, int threads) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          const TypedKernels<T>& typed = kernels().of<T>();
          if (is_index64)
            kernel64(typed)({pointer<const T>(in), in_stride, pointer<const std::int64_t>(index), count, dim,
                             pointer<T>(out), out_stride},
                            threads);
          else
            kernel32(typed)({pointer<const T>(in), in_stride, pointer<const std::int32_t>(index), count, dim,
                             pointer<T>(out), out_stride},
                            threads);
        });
      },
      py::arg("is_double"), py::arg("is_index64"), py::arg("source"), py::arg("source_stride"), py::arg("index"),
      py::arg("count"), py::arg("dim"), py::arg("out"), py::arg("out_stride"), py::arg("threads"));
}

}  // namespace

void register_rows(py::module_& module) {
  register_move(
      module, "gather_rows", [](const auto& typed) { return typed.gather_rows32; },
      [](const auto& typed) { return typed.gather_rows64; });
  register_move(
      module, "scatter_add_rows", [](const auto& typed) { return typed.scatter_add_rows32; },
      [](const auto& typed) { return typed.scatter_add_rows64; });

  module.def(
      "column_sum",
      [](bool is_double, Address in, std::int64_t in_stride, std::int64_t rows, std::int64_t dim, Address out,
         bool accumulate, int threads) {
        std::vector<double> workspace(static_cast<std::size_t>(column_workspace(rows, dim, 1)));
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          kernels().of<T>().column_sum(
              {pointer<const T>(in), in_stride, rows, dim, pointer<T>(out), accumulate, workspace.data()}, threads);
        });
      },
      py::arg("is_double"), py::arg("source"), py::arg("source_stride"), py::arg("rows"), py::arg("dim"),
      py::arg("out"), py::arg("accumulate"), py::arg("threads"));
}

}  // namespace halocast
