#include <pybind11/numpy.h>

#include "epochs.h"
#include "register.h"

namespace halocast {
namespace {

using Indices = py::array_t<Index, py::array::c_style>;
using Doubles = py::array_t<double, py::array::c_style>;

void simulate_epochs(Index epochs, const Indices& first_step, const Doubles& compute, const Indices& meeting,
                     const Indices& reduction, const Indices& first_post, const Indices& posts, const Indices& first_slot,
                     const Indices& last_slot, const Indices& parts, const Indices& slot_rank, const Indices& slot_step,
                     const Indices& exchange, const Indices& connection, const Indices& sending_slot, const Indices& receiving_slot,
                     const Indices& source, const Indices& target, const Doubles& bytes, const Doubles& bucket,
                     const Doubles& costs, const Doubles& capacity, const Doubles& burst, double queue_seconds,
                     const Indices& paths, const Doubles& latency, double window, Index exact_flows, double together,
                     Index exact_ring, Doubles reached, Doubles left, Doubles landed, Doubles done, Doubles begin,
                     Doubles end, Doubles samples) {
  const Programs programs{first_step.size() - 1,  connection.size(),   source.size(),         bucket.size(),
                          parts.size(),           first_step.data(),   compute.data(),        meeting.data(),
                          reduction.data(),       first_post.data(),   posts.data(),          first_slot.data(),
                          last_slot.data(),       parts.data(),        slot_rank.data(),      slot_step.data(),
                          exchange.data(),        connection.data(),      sending_slot.data(), receiving_slot.data(), source.data(),
                          target.data(),          bytes.data(),        bucket.data()};
  const double* const c = costs.data();
  const Times times{reached.mutable_data(), left.mutable_data(), landed.mutable_data(), done.mutable_data(),
                    begin.mutable_data(),   end.mutable_data(),  samples.mutable_data()};
  const Network network{capacity.size(), paths.shape(1), queue_seconds, capacity.data(),
                        burst.data(),    paths.data(),   latency.data()};
  const py::gil_scoped_release unlocked;
  Epochs(programs, {c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7], c[8], c[9]}, network,
         {window, exact_flows, together, exact_ring}, times)
      .run(epochs);
}

}  // namespace

void register_epochs(py::module_& module) {
  module.def("simulate_epochs", &simulate_epochs, py::arg("epochs"), py::kw_only(), py::arg("first_step").noconvert(),
             py::arg("compute").noconvert(), py::arg("meeting").noconvert(), py::arg("reduction").noconvert(),
             py::arg("first_post").noconvert(), py::arg("posts").noconvert(), py::arg("first_slot").noconvert(),
             py::arg("last_slot").noconvert(), py::arg("parts").noconvert(), py::arg("slot_rank").noconvert(),
             py::arg("slot_step").noconvert(), py::arg("exchange").noconvert(), py::arg("connection").noconvert(), py::arg("sending_slot").noconvert(),
             py::arg("receiving_slot").noconvert(), py::arg("source").noconvert(), py::arg("target").noconvert(),
             py::arg("bytes").noconvert(), py::arg("bucket").noconvert(), py::arg("costs").noconvert(),
             py::arg("capacity").noconvert(), py::arg("burst").noconvert(), py::arg("queue_seconds"),
             py::arg("paths").noconvert(), py::arg("latency").noconvert(), py::arg("window"), py::arg("exact_flows"),
             py::arg("together"), py::arg("exact_ring"), py::arg("reached").noconvert(), py::arg("left").noconvert(),
             py::arg("landed").noconvert(), py::arg("done").noconvert(), py::arg("begin").noconvert(),
             py::arg("end").noconvert(), py::arg("samples").noconvert());
}

}  // namespace halocast
