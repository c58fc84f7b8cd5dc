// Compiled once for each instruction set, with HALOCAST_ISA naming its namespace. Everything here has internal linkage
// but table(): an inline function shared between instruction sets would be linked once, and could land on a processor
// that cannot run it.
#include "kernels.h"

#include "aggregate.h"
#include "attend.h"
#include "attend_backward.h"
#include "columns.h"
#include "epilogue.h"
#include "extreme.h"
#include "loss.h"
#include "philox.h"
#include "rows.h"

namespace halocast::HALOCAST_ISA {
namespace {

void philox(const RandomStream& stream, const std::int64_t* nodes, std::int64_t rows, std::int64_t dim,
            std::int64_t* out, int threads) {
  for_rows(rows, dim, threads, [&](std::int64_t row) {
    std::uint32_t words[words_at_once];
    for (std::int64_t first = 0; first < dim; first += words_at_once) {
      const std::int64_t count = dim - first < words_at_once ? dim - first : words_at_once;
      philox_words(PhiloxRow(stream, nodes[row]), first, count, words);
      for (std::int64_t k = 0; k < count; ++k) out[row * dim + first + k] = words[k];
    }
  });
}

template <class T>
constexpr TypedKernels<T> typed() {
  return {aggregate<T>,
          epilogue_forward<T>,
          epilogue_backward<T>,
          column_sum<T>,
          gather_rows<T, std::int32_t>,
          gather_rows<T, std::int64_t>,
          scatter_add_rows<T, std::int32_t>,
          scatter_add_rows<T, std::int64_t>,
          cross_entropy<T>,
          bce<T>,
          attend_forward<T>,
          attend_finish<T>,
          attend_pack<T>,
          attend_backward<T>,
          extreme_forward<T>,
          extreme_backward<T>};
}

}  // namespace

const KernelTable* table() {
  static constexpr KernelTable kernels{typed<float>(), typed<double>(), philox};
  return &kernels;
}

}  // namespace halocast::HALOCAST_ISA
