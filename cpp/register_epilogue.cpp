#include <vector>

#include "register.h"

namespace halocast {

void register_epilogue(py::module_& module) {
  module.def(
      "epilogue_forward",
      [](bool is_double, Address z, std::int64_t z_stride, Address out, std::int64_t out_stride, std::int64_t rows,
         std::int64_t dim, Address bias, Address gamma, Address beta, Address mean, Address rstd, double eps, bool relu,
         std::uint64_t threshold, double scale, std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag,
         Address nodes, int threads) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          kernels().of<T>().epilogue_forward(
              {pointer<const T>(z), z_stride, pointer<T>(out), out_stride, rows, dim, pointer<const T>(bias),
               pointer<const T>(gamma), pointer<const T>(beta), pointer<T>(mean), pointer<T>(rstd), static_cast<T>(eps),
               relu, dropout(threshold, scale, seed, epoch, tag, nodes)},
              threads);
        });
      },
      py::arg("is_double"), py::arg("z"), py::arg("z_stride"), py::arg("out"), py::arg("out_stride"), py::arg("rows"),
      py::arg("dim"), py::arg("bias"), py::arg("gamma"), py::arg("beta"), py::arg("mean"), py::arg("rstd"),
      py::arg("eps"), py::arg("relu"), py::arg("threshold"), py::arg("scale"), py::arg("seed"), py::arg("epoch"),
      py::arg("tag"), py::arg("nodes"), py::arg("threads"));

  module.def(
      "epilogue_backward",
      [](bool is_double, Address grad, std::int64_t grad_stride, Address out, std::int64_t out_stride, Address z,
         std::int64_t z_stride, std::int64_t rows, std::int64_t dim, Address bias, Address gamma, Address mean,
         Address rstd, std::uint64_t threshold, double scale, std::uint64_t seed, std::uint32_t epoch,
         std::uint32_t tag, Address nodes, Address grad_bias, Address grad_gamma, Address grad_beta, bool accumulate,
         int threads) {
        std::vector<double> workspace(static_cast<std::size_t>(column_workspace(rows, dim, gamma != 0 ? 3 : 1)));
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          kernels().of<T>().epilogue_backward(
              {pointer<T>(grad), grad_stride, pointer<const T>(out), out_stride, pointer<const T>(z), z_stride, rows,
               dim, pointer<const T>(bias), pointer<const T>(gamma), pointer<const T>(mean), pointer<const T>(rstd),
               dropout(threshold, scale, seed, epoch, tag, nodes), pointer<T>(grad_bias), pointer<T>(grad_gamma),
               pointer<T>(grad_beta), accumulate, workspace.data()},
              threads);
        });
      },
      py::arg("is_double"), py::arg("grad"), py::arg("grad_stride"), py::arg("out"), py::arg("out_stride"),
      py::arg("z"), py::arg("z_stride"), py::arg("rows"), py::arg("dim"), py::arg("bias"), py::arg("gamma"),
      py::arg("mean"), py::arg("rstd"), py::arg("threshold"), py::arg("scale"), py::arg("seed"), py::arg("epoch"),
      py::arg("tag"), py::arg("nodes"), py::arg("grad_bias"), py::arg("grad_gamma"), py::arg("grad_beta"),
      py::arg("accumulate"), py::arg("threads"));
}

}  // namespace halocast
