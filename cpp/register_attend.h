// How Python calls attention and extremes, the same on every kind of device.
//
// Where: name(function) is what Python calls it, run(job, last) does it, and Last, which Python calls last_name, is
// what it needs beside the job. workspace: see Where::run.
#pragma once

#include "register.h"

namespace halocast {
namespace {

// Attention<T> before T is known.
struct AttentionAddresses {
  std::int64_t heads, dim;
  double slope;
  Address z;
  std::int64_t z_stride;
  Address source_logit;
  std::int64_t source_logit_stride;
  Address target_logit;
  std::int64_t target_logit_stride;
  Address edge_logit, target;
  std::int64_t target_stride;
  Address weight;
  Dropout dropout;
  Address source_nodes;

  template <class T>
  Attention<T> typed() const {
    return {heads,
            dim,
            static_cast<T>(slope),
            pointer<const T>(z),
            z_stride,
            pointer<const T>(source_logit),
            source_logit_stride,
            pointer<const T>(target_logit),
            target_logit_stride,
            pointer<const T>(edge_logit),
            pointer<const T>(target),
            target_stride,
            pointer<const T>(weight),
            dropout,
            pointer<const std::int64_t>(source_nodes)};
  }
};

template <class Where>
void register_attention(py::module_& module) {
  module.def(
      Where::name("attend_forward").c_str(),
      [](bool is_double, const AttentionAddresses& attention, const BlockRows& by_target, Address maximum, Address sum,
         Address out, std::int64_t out_stride, typename Where::Last last) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          Where::run(AttendForward<T>{attention.typed<T>(), by_target, pointer<T>(maximum), pointer<T>(sum),
                                      pointer<T>(out), out_stride},
                     last);
        });
      },
      py::arg("is_double"), py::arg("attention"), py::arg("by_target"), py::arg("maximum"), py::arg("sum"),
      py::arg("out"), py::arg("out_stride"), py::arg(Where::last_name));

  module.def(
      Where::name("attend_finish").c_str(),
      [](bool is_double, std::int64_t rows, std::int64_t heads, std::int64_t dim, Address sum, Address out,
         std::int64_t out_stride, typename Where::Last last) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          Where::run(AttendFinish<T>{rows, heads, dim, pointer<const T>(sum), pointer<T>(out), out_stride}, last);
        });
      },
      py::arg("is_double"), py::arg("rows"), py::arg("heads"), py::arg("dim"), py::arg("sum"), py::arg("out"),
      py::arg("out_stride"), py::arg(Where::last_name));

  module.def(
      Where::name("attend_pack").c_str(),
      [](bool is_double, std::int64_t rows, std::int64_t heads, std::int64_t dim, Address target_logit,
         std::int64_t target_logit_stride, Address maximum, Address sum, Address out, std::int64_t out_stride,
         Address grad, std::int64_t grad_stride, Address packed, typename Where::Last last) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          Where::run(AttendPack<T>{rows, heads, dim, pointer<const T>(target_logit), target_logit_stride,
                                   pointer<const T>(maximum), pointer<const T>(sum), pointer<const T>(out), out_stride,
                                   pointer<const T>(grad), grad_stride, pointer<T>(packed)},
                     last);
        });
      },
      py::arg("is_double"), py::arg("rows"), py::arg("heads"), py::arg("dim"), py::arg("target_logit"),
      py::arg("target_logit_stride"), py::arg("maximum"), py::arg("sum"), py::arg("out"), py::arg("out_stride"),
      py::arg("grad"), py::arg("grad_stride"), py::arg("packed"), py::arg(Where::last_name));

  module.def(
      Where::name("attend_backward").c_str(),
      [](bool is_double, const AttentionAddresses& attention, const BlockRows& by_target, const BlockRows& by_source,
         Address entry, Address packed, Address grad, std::int64_t grad_stride, bool accumulate, Address grad_z,
         std::int64_t grad_z_stride, Address grad_source_logit, std::int64_t grad_source_logit_stride,
         Address grad_target_logit, std::int64_t grad_target_logit_stride, Address grad_edge_logit, Address grad_target,
         std::int64_t grad_target_stride, Address grad_weight, Address workspace, typename Where::Last last) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          Where::run(AttendBackward<T>{attention.typed<T>(), by_target, by_source, pointer<const std::int64_t>(entry),
                                       pointer<const T>(packed), pointer<const T>(grad), grad_stride, accumulate,
                                       pointer<T>(grad_z), grad_z_stride, pointer<T>(grad_source_logit),
                                       grad_source_logit_stride, pointer<T>(grad_target_logit),
                                       grad_target_logit_stride, pointer<T>(grad_edge_logit), pointer<T>(grad_target),
                                       grad_target_stride, pointer<T>(grad_weight), pointer<double>(workspace)},
                     last);
        });
      },
      py::arg("is_double"), py::arg("attention"), py::arg("by_target"), py::arg("by_source"), py::arg("entry"),
      py::arg("packed"), py::arg("grad"), py::arg("grad_stride"), py::arg("accumulate"), py::arg("grad_z"),
      py::arg("grad_z_stride"), py::arg("grad_source_logit"), py::arg("grad_source_logit_stride"),
      py::arg("grad_target_logit"), py::arg("grad_target_logit_stride"), py::arg("grad_edge_logit"),
      py::arg("grad_target"), py::arg("grad_target_stride"), py::arg("grad_weight"), py::arg("workspace"),
      py::arg(Where::last_name));
}

template <class Where>
void register_extreme(py::module_& module) {
  module.def(
      Where::name("extreme_forward").c_str(),
      [](bool is_double, const BlockRows& by_target, bool minimum, std::int64_t dim, Address features,
         std::int64_t features_stride, Address value, std::int64_t value_stride, Address ties, std::int64_t ties_stride,
         typename Where::Last last) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          Where::run(ExtremeForward<T>{by_target, minimum, dim, pointer<const T>(features), features_stride,
                                       pointer<T>(value), value_stride, pointer<T>(ties), ties_stride},
                     last);
        });
      },
      py::arg("is_double"), py::arg("by_target"), py::arg("minimum"), py::arg("dim"), py::arg("features"),
      py::arg("features_stride"), py::arg("value"), py::arg("value_stride"), py::arg("ties"), py::arg("ties_stride"),
      py::arg(Where::last_name));

  module.def(
      Where::name("extreme_backward").c_str(),
      [](bool is_double, const BlockRows& by_source, std::int64_t dim, Address features, std::int64_t features_stride,
         Address value, std::int64_t value_stride, Address share, std::int64_t share_stride, Address grad_features,
         std::int64_t grad_features_stride, bool accumulate, typename Where::Last last) {
        with_type(is_double, [&](auto type) {
          using T = decltype(type);
          Where::run(ExtremeBackward<T>{by_source, dim, pointer<const T>(features), features_stride,
                                        pointer<const T>(value), value_stride, pointer<const T>(share), share_stride,
                                        pointer<T>(grad_features), grad_features_stride, accumulate},
                     last);
        });
      },
      py::arg("is_double"), py::arg("by_source"), py::arg("dim"), py::arg("features"), py::arg("features_stride"),
      py::arg("value"), py::arg("value_stride"), py::arg("share"), py::arg("share_stride"), py::arg("grad_features"),
      py::arg("grad_features_stride"), py::arg("accumulate"), py::arg(Where::last_name));
}

}  // namespace
}  // namespace halocast
