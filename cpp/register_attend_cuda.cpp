// Built only with a CUDA compiler. The launches return at once.
#include "cuda/launch_attend.h"
#include "register_attend.h"

namespace halocast {
namespace {

// On a stream (a cudaStream_t) of the current device, of which every address is one.
struct OnStream {
  using Last = Address;
  static constexpr const char* last_name = "stream";

  static std::string name(const char* function) { return std::string(function) + "_cuda"; }

  template <class Job>
  static void run(const Job& job, Address stream) {
    attention::launch(job, stream);
  }
};

}  // namespace

void register_attend_cuda(py::module_& module) {
  module.attr("attend_chunk_targets") = attention::chunk_targets;
  module.attr("attend_in_place_dim") = attention::in_place_dim;
  register_attention<OnStream>(module);
  register_extreme<OnStream>(module);
}

}  // namespace halocast
