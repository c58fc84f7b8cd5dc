#include "register_attend.h"

#include <memory>

namespace halocast {
namespace {

void register_arguments(py::module_& module) {
  py::class_<BlockRows>(module, "BlockRows")
      .def(py::init([](Address begin, Address end, Address index, std::int64_t rows) {
             return BlockRows{pointer<const std::int64_t>(begin), pointer<const std::int64_t>(end),
                              pointer<const std::int32_t>(index), rows};
           }),
           py::arg("begin"), py::arg("end"), py::arg("index"), py::arg("rows"));
  py::class_<AttentionAddresses>(module, "Attention")
      .def(py::init([](std::int64_t heads, std::int64_t dim, double slope, Address z, std::int64_t z_stride,
                       Address source_logit, std::int64_t source_logit_stride, Address target_logit,
                       std::int64_t target_logit_stride, Address edge_logit, Address target, std::int64_t target_stride,
                       Address weight, std::uint64_t threshold, double scale, std::uint64_t seed, std::uint32_t epoch,
                       std::uint32_t tag, Address target_nodes, Address source_nodes) {
             return AttentionAddresses{heads,
                                       dim,
                                       slope,
                                       z,
                                       z_stride,
                                       source_logit,
                                       source_logit_stride,
                                       target_logit,
                                       target_logit_stride,
                                       edge_logit,
                                       target,
                                       target_stride,
                                       weight,
                                       dropout(threshold, scale, seed, epoch, tag, target_nodes),
                                       source_nodes};
           }),
           py::arg("heads"), py::arg("dim"), py::arg("slope"), py::arg("z"), py::arg("z_stride"),
           py::arg("source_logit"), py::arg("source_logit_stride"), py::arg("target_logit"),
           py::arg("target_logit_stride"), py::arg("edge_logit"), py::arg("target"), py::arg("target_stride"),
           py::arg("weight"), py::arg("threshold"), py::arg("scale"), py::arg("seed"), py::arg("epoch"), py::arg("tag"),
           py::arg("target_nodes"), py::arg("source_nodes"));
}

// On threads of the processor; the backward pass has a workspace of its own.
struct OnThreads {
  using Last = int;
  static constexpr const char* last_name = "threads";

  static std::string name(const char* function) { return function; }

  template <class T>
  static void run(const AttendForward<T>& job, int threads) {
    kernels().of<T>().attend_forward(job, threads);
  }
  template <class T>
  static void run(const AttendFinish<T>& job, int threads) {
    kernels().of<T>().attend_finish(job, threads);
  }
  template <class T>
  static void run(const AttendPack<T>& job, int threads) {
    kernels().of<T>().attend_pack(job, threads);
  }
  template <class T>
  static void run(AttendBackward<T> job, int threads) {
    // Not zeroed: the kernels' threads do so, each what it uses.
    const std::unique_ptr<double[]> workspace(new double[static_cast<std::size_t>(attend_workspace(job))]);
    job.workspace = workspace.get();
    kernels().of<T>().attend_backward(job, threads);
  }
  template <class T>
  static void run(const ExtremeForward<T>& job, int threads) {
    kernels().of<T>().extreme_forward(job, threads);
  }
  template <class T>
  static void run(const ExtremeBackward<T>& job, int threads) {
    kernels().of<T>().extreme_backward(job, threads);
  }
};

}  // namespace

void register_attend(py::module_& module) {
  register_arguments(module);
  register_attention<OnThreads>(module);
  register_extreme<OnThreads>(module);
}

}  // namespace halocast
