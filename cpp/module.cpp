// The Python module halocast._kernels: raw, trusting primitives. halocast.runtime.kernels checks and words the errors.
#include "register.h"

PYBIND11_MODULE(_kernels, module) {
  module.doc() = "Native kernels on raw addresses; use halocast.runtime.kernels.";
  try {
    halocast::set_default_isa();
  } catch (const std::invalid_argument& error) {
    throw pybind11::import_error(error.what());
  }
  halocast::register_aggregate(module);
  halocast::register_attend(module);
  halocast::register_codec(module);
#if defined(HALOCAST_CUDA)
  halocast::register_cuda(module);
  halocast::register_attend_cuda(module);
#endif
  halocast::register_epilogue(module);
  halocast::register_epochs(module);
  halocast::register_loss(module);
  halocast::register_rows(module);
  halocast::register_runtime(module);
}
