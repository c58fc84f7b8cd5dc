// What attention does on a span of one row's edges, all heads at once: numbers per head and edge, on the stack.
#pragma once

#include <type_traits>
#include <vector>

#include "kernels.h"
#include "philox.h"
#include "simd.h"

namespace halocast::HALOCAST_ISA {
namespace {

// Edges done at a time: a whole number of registers, and few enough that their rows stay in the first cache.
constexpr int span_edges = 32;

// Edges between the row being read and the row being fetched: more than a span, so that the next one is on its way when
// its logits are needed (measured: 16 and 24 are slower).
constexpr std::int64_t attend_distance = 40;

// Memory for Count spans, close together: at a distance of 4 KB a store would hold up the loads of another.
template <class T, int Count>
struct SpanStorage {
  alignas(64) T numbers[Count * most_heads * span_edges];
};

// One number for each head and edge of a span.
template <class T>
class Span {
 public:
  template <int Count>
  Span(SpanStorage<T, Count>& storage, int which, std::int64_t heads)
      : numbers_(storage.numbers + which * heads * span_edges) {}

  T* operator[](std::int64_t head) const { return numbers_ + head * span_edges; }

 private:
  T* numbers_;
};

// One register of a row: columns [offset, offset + count) of one head.
struct Slice {
  std::int64_t offset;
  std::int64_t head;
  int count;
};

// A row of heads · dim columns, as registers that never cross a head.
template <class T>
struct HeadColumns {
  HeadColumns(std::int64_t heads, std::int64_t dim)
      : heads(heads), dim(dim), full(static_cast<int>(dim / lanes<T>)), tail(static_cast<int>(dim % lanes<T>)) {
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t first = 0; first < dim; first += lanes<T>)
        slices.push_back({head * dim + first, head, static_cast<int>(dim - first < lanes<T> ? dim - first : lanes<T>)});
  }

  std::int64_t heads;
  std::int64_t dim;
  int full;  // whole registers of a head
  int tail;  // columns of its last one, or 0
  std::vector<Slice> slices;
};

// For a slope of 0 to 1.
template <class F, class T>
inline F leaky(F x, T slope) {
  const F less = x * slope;
  return x > less ? x : less;
}

// Its derivative; slope at 0, as torch has it.
template <class F, class T>
inline F leaky_derivative(F x, T slope) {
  return x > F{} ? F{} + T(1) : F{} + slope;
}

inline int whole_registers(int count, int lanes) { return (count + lanes - 1) / lanes * lanes; }

template <class T>
inline T sum_of_lanes(Vector<T> v) {
  T numbers[lanes<T>];
  store(numbers, v);
  for (int half = lanes<T> / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) numbers[lane] += numbers[lane + half];
  return numbers[0];
}

// Lanes of a‖b in blocks of Block: even blocks plus odd blocks.
template <int Block, class T>
inline Vector<T> fold(Vector<T> a, Vector<T> b) {
  typedef typename std::conditional<sizeof(T) == 4, std::int32_t, std::int64_t>::type Integer;
  typedef Integer Lanes __attribute__((vector_size(vector_bytes)));
  Lanes even;
  for (int lane = 0; lane < lanes<T>; ++lane) even[lane] = lane / Block * 2 * Block + lane % Block;
  return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, even + Block);
}

// Lane i of the result: the sum of the lanes of parts[i]. parts is used up.
template <class T, int Block = lanes<T> / 2>
inline Vector<T> sums_of_lanes(Vector<T>* parts) {
  for (int i = 0; i < Block; ++i) parts[i] = fold<Block, T>(parts[2 * i], parts[2 * i + 1]);
  if constexpr (Block > 1)
    return sums_of_lanes<T, Block / 2>(parts);
  else
    return parts[0];
}

// to[head][edge] = the sum over the head's columns of term(edge, offset, load), where load reads a register at
// `offset`. Numbers behind the last edge, up to a whole register, repeat the last one's.
template <class T, class Term>
inline __attribute__((always_inline)) void sum_over_columns(const HeadColumns<T>& columns, int count, const Span<T>& to,
                                                            const Term& term) {
  const auto load_whole = [](const T* from) __attribute__((always_inline)) { return load(from); };
  const auto load_tail = [&](const T* from) __attribute__((always_inline)) { return load_partial(from, columns.tail); };
  for (int first = 0; first < count; first += lanes<T>)
    for (std::int64_t head = 0; head < columns.heads; ++head) {
      Vector<T> parts[lanes<T>];
      for (int lane = 0; lane < lanes<T>; ++lane) {
        const int edge = first + lane < count ? first + lane : count - 1;
        std::int64_t offset = head * columns.dim;
        Vector<T> sum{};
        for (int v = 0; v < columns.full; ++v, offset += lanes<T>) sum += term(edge, offset, load_whole);
        if (columns.tail != 0) sum += term(edge, offset, load_tail);
        parts[lane] = sum;
      }
      store(&to[head][first], sums_of_lanes<T>(parts));
    }
}

// to += the sum over edges of weight[head][edge] · rows[edge], on some registers of the row.
template <class T, int Vectors, bool Tail, class Fetch>
void add_weighted(const Slice* slices, const T* const* rows, int count, const Span<T>& weight, T* to,
                  const Fetch& fetch) {
  Vector<T> sums[Vectors];
  const T* factors[Vectors];
  std::int64_t offsets[Vectors];
  for (int v = 0; v < Vectors; ++v) {
    offsets[v] = Tail ? slices[v].offset : slices[0].offset + v * lanes<T>;
    factors[v] = weight[slices[v].head];
    sums[v] = Tail ? load_partial(to + offsets[v], slices[v].count) : load(to + offsets[v]);
  }
  for (int edge = 0; edge < count; ++edge) {
    fetch(edge);
    const T* const row = rows[edge];
    for (int v = 0; v < Vectors; ++v) {
      const Vector<T> x = Tail ? load_partial(row + offsets[v], slices[v].count) : load(row + offsets[v]);
      sums[v] += x * factors[v][edge];
    }
  }
  for (int v = 0; v < Vectors; ++v) {
    if constexpr (Tail)
      store_partial(to + offsets[v], sums[v], slices[v].count);
    else
      store(to + offsets[v], sums[v]);
  }
}

// Calls run(first slice, std::integral_constant of how many), in equal blocks of at most Most.
template <int Most, class Run>
inline void with_count(int count, const Run& run) {
  if (count == Most) return run(std::integral_constant<int, Most>{});
  if constexpr (Most > 1) with_count<Most - 1>(count, run);
}
template <int Most, class Run>
inline void for_slice_blocks(std::int64_t slices, const Run& run) {
  const std::int64_t blocks = (slices + Most - 1) / Most;
  std::int64_t done = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t upto = slices * (block + 1) / blocks;
    with_count<Most>(static_cast<int>(upto - done), [&](auto vectors) { run(done, vectors); });
    done = upto;
  }
}

// All columns; fetch(edge) runs once for each edge.
template <class T, class Fetch>
inline void add_weighted_rows(const HeadColumns<T>& columns, const T* const* rows, int count, const Span<T>& weight,
                              T* to, const Fetch& fetch) {
  const auto nothing = [](int) {};
  for_slice_blocks<max_accumulators>(
      static_cast<std::int64_t>(columns.slices.size()), [&](std::int64_t done, auto vectors) {
        const Slice* const slices = &columns.slices[done];
        constexpr int count_of_vectors = decltype(vectors)::value;
        if (columns.tail != 0) {
          if (done == 0)
            add_weighted<T, count_of_vectors, true>(slices, rows, count, weight, to, fetch);
          else
            add_weighted<T, count_of_vectors, true>(slices, rows, count, weight, to, nothing);
        } else if (done == 0) {
          add_weighted<T, count_of_vectors, false>(slices, rows, count, weight, to, fetch);
        } else {
          add_weighted<T, count_of_vectors, false>(slices, rows, count, weight, to, nothing);
        }
      });
}

// Numbers of each edge's other end, turned over: to[head][edge] = matrix[index[edge], head].
template <class T>
inline void gather_heads(const T* matrix, std::int64_t stride, const std::int32_t* index, int count, std::int64_t heads,
                         const Span<T>& to) {
  for (int edge = 0; edge < count; ++edge) {
    const T* const from = matrix + index[edge] * stride;
    for (std::int64_t head = 0; head < heads; ++head) to[head][edge] = from[head];
  }
}

// What stands behind the last edge, up to a whole register.
template <class T>
inline void pad(const Span<T>& span, std::int64_t heads, int count, T with) {
  for (int edge = count; edge < whole_registers(count, lanes<T>); ++edge)
    for (std::int64_t head = 0; head < heads; ++head) span[head][edge] = with;
}

// Dropout's factor of each head and edge: 0, or 1 / (1 - p). The word is that of node `target` and element source ·
// 4⌈heads / 4⌉ + head of the stream, so that it depends on no partition.
template <class T, class TargetOf, class SourceOf>
void dropout_factors(const Dropout& dropout, std::int64_t heads, int count, const TargetOf& target_of,
                     const SourceOf& source_of, const Span<T>& to) {
  const auto below = static_cast<std::uint32_t>(dropout.threshold - 1);
  const T scale = static_cast<T>(dropout.scale);
  const int blocks = static_cast<int>(heads + 3) / 4;
  std::uint32_t words[4 * philox_batch];
  for (int first = 0; first < count * blocks; first += philox_batch) {
    PhiloxState c0{}, c1{}, c3{};
    const int last = count * blocks - first < philox_batch ? count * blocks - first : philox_batch;
    for (int lane = 0; lane < last; ++lane) {
      const int edge = (first + lane) / blocks;
      const auto target = static_cast<std::uint64_t>(target_of(edge));
      c0[lane] = static_cast<std::uint32_t>(source_of(edge) * blocks + (first + lane) % blocks);
      c1[lane] = target & 0xffffffffu;
      c3[lane] = dropout.stream.tag | (target >> 32 & 0xffu);
    }
    philox_rounds_of(c0, c1, PhiloxState{} + dropout.stream.epoch, c3, static_cast<std::uint32_t>(dropout.stream.seed),
                     static_cast<std::uint32_t>(dropout.stream.seed >> 32), words);
    for (int lane = 0; lane < last; ++lane) {
      const std::int64_t head = (first + lane) % blocks * 4;
      for (std::int64_t k = 0; k < 4 && head + k < heads; ++k)
        to[head + k][(first + lane) / blocks] = words[4 * lane + k] > below ? scale : T(0);
    }
  }
  pad(to, heads, count, T(0));
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
