#include <pybind11/stl.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "parallel.h"
#include "register.h"

namespace halocast {
namespace {

// Asks for 2 MB pages over the whole pages within [address, address + bytes); false where the system has none.
bool advise_huge_pages(Address address, std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr Address page = 4096;
  const Address first = (address + page - 1) / page * page;
  const Address last = (address + bytes) / page * page;
  return last > first && madvise(pointer<void>(first), last - first, MADV_HUGEPAGE) == 0;
#else
  static_cast<void>(address);
  static_cast<void>(bytes);
  return false;
#endif
}

}  // namespace

void register_runtime(py::module_& module) {
  module.def(
      "attach_openmp", [](Address gomp_parallel) { attach_openmp(pointer<void>(gomp_parallel)); },
      py::arg("gomp_parallel"));
  module.def("advise_huge_pages", &advise_huge_pages, py::arg("address"), py::arg("bytes"));
  module.def("isa", &current_isa);
  module.def("available_isas", &available_isas);
  module.def("set_isa", &set_isa, py::arg("name"));
  module.def(
      "philox",
      [](std::uint64_t seed, std::uint32_t epoch, std::uint32_t tag, Address nodes, std::int64_t rows, std::int64_t dim,
         Address out, int threads) {
        const py::gil_scoped_release unlocked;
        kernels().philox({seed, epoch, tag}, pointer<const std::int64_t>(nodes), rows, dim, pointer<std::int64_t>(out),
                         threads);
      },
      py::arg("seed"), py::arg("epoch"), py::arg("tag"), py::arg("nodes"), py::arg("rows"), py::arg("dim"),
      py::arg("out"), py::arg("threads"));
}

}  // namespace halocast
