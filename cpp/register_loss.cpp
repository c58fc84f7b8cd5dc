#include <numeric>
#include <string>
#include <vector>

#include "register.h"

namespace halocast {
namespace {

// One byte for each row: is it listed? Throws IndexError with the position of an entry that is no row or a repeat.
std::vector<std::uint8_t> list_rows(const std::int64_t* rows, std::int64_t count, std::int64_t total_rows) {
  std::vector<std::uint8_t> listed(static_cast<std::size_t>(total_rows));
  for (std::int64_t k = 0; k < count; ++k) {
    if (rows[k] < 0 || rows[k] >= total_rows || listed[static_cast<std::size_t>(rows[k])] != 0)
      throw py::index_error(std::to_string(k));
    listed[static_cast<std::size_t>(rows[k])] = 1;
  }
  return listed;
}

// Room for the losses of blocks of rows, added in order.
class BlockLosses {
 public:
  explicit BlockLosses(std::int64_t count) : losses_(static_cast<std::size_t>(row_blocks(count))) {}
  double* data() { return losses_.data(); }
  double total() const { return std::accumulate(losses_.begin(), losses_.end(), 0.0); }

 private:
  std::vector<double> losses_;
};

}  // namespace

void register_loss(py::module_& module) {
  module.def(
      "cross_entropy",
      [](bool is_double, Address logits, std::int64_t logits_stride, Address targets, Address rows, std::int64_t count,
         std::int64_t total_rows, std::int64_t classes, Address grad, std::int64_t grad_stride, double scale,
         int threads) {
        const auto* const chosen = pointer<const std::int64_t>(rows);
        std::vector<std::uint8_t> listed = list_rows(chosen, count, total_rows);
        BlockLosses losses(count);
        const std::int64_t offender = with_type(is_double, [&](auto type) {
          using T = decltype(type);
          return kernels().of<T>().cross_entropy(
              {pointer<const T>(logits), logits_stride, pointer<const std::int64_t>(targets), chosen, count, total_rows,
               classes, pointer<T>(grad), grad_stride, static_cast<T>(scale), losses.data(), listed.data()},
              threads);
        });
        return py::make_tuple(losses.total(), offender);
      },
      py::arg("is_double"), py::arg("logits"), py::arg("logits_stride"), py::arg("targets"), py::arg("rows"),
      py::arg("count"), py::arg("total_rows"), py::arg("classes"), py::arg("grad"), py::arg("grad_stride"),
      py::arg("scale"), py::arg("threads"));

  module.def(
      "bce",
      [](bool is_double, Address logits, std::int64_t logits_stride, Address targets, Address rows, std::int64_t count,
         std::int64_t total_rows, std::int64_t classes, Address grad, std::int64_t grad_stride, double scale,
         int threads) {
        const auto* const chosen = pointer<const std::int64_t>(rows);
        std::vector<std::uint8_t> listed = list_rows(chosen, count, total_rows);
        BlockLosses losses(count);
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          kernels().of<T>().bce(
              {pointer<const T>(logits), logits_stride, pointer<const std::uint8_t>(targets), chosen, count, total_rows,
               classes, pointer<T>(grad), grad_stride, static_cast<T>(scale), losses.data(), listed.data()},
              threads);
        });
        return losses.total();
      },
      py::arg("is_double"), py::arg("logits"), py::arg("logits_stride"), py::arg("targets"), py::arg("rows"),
      py::arg("count"), py::arg("total_rows"), py::arg("classes"), py::arg("grad"), py::arg("grad_stride"),
      py::arg("scale"), py::arg("threads"));
}

}  // namespace halocast
