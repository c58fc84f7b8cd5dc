// Shared by the register_*.cpp files: addresses come from Python as integers, and work runs without the interpreter
// lock.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "isa.h"
#include "kernels.h"

namespace halocast {

namespace py = pybind11;
using Address = std::uintptr_t;

template <class T>
T* pointer(Address address) {
  return reinterpret_cast<T*>(address);
}

// Calls run(T{}) with T double or float, without the interpreter lock.
template <class Run>
auto with_type(bool is_double, const Run& run) {
  const py::gil_scoped_release unlocked;
  return is_double ? run(double{}) : run(float{});
}

// As the wrappers hand dropout over.
inline Dropout dropout(std::uint64_t threshold, double scale, std::uint64_t seed, std::uint32_t epoch,
                       std::uint32_t tag, Address nodes) {
  return {threshold, scale, {seed, epoch, tag}, pointer<const std::int64_t>(nodes)};
}

void register_aggregate(py::module_& module);
void register_attend(py::module_& module);
void register_attend_cuda(py::module_& module);
void register_codec(py::module_& module);
void register_cuda(py::module_& module);
void register_epilogue(py::module_& module);
void register_epochs(py::module_& module);
void register_loss(py::module_& module);
void register_rows(py::module_& module);
void register_runtime(py::module_& module);

}  // namespace halocast
