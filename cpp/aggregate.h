// Sparse rows times a dense matrix; the sums of a row stay in registers.
#pragma once

#include "balance.h"
#include "kernels.h"
#include "simd.h"

namespace halocast::HALOCAST_ISA {
namespace {

// Edges between the row being added and the row being fetched (measured; wider rows need less head start).
template <int Vectors>
constexpr std::int64_t prefetch_distance = Vectors * vector_bytes <= 128   ? 32
                                           : Vectors * vector_bytes <= 512 ? 16
                                                                           : 8;

// Adds one edge's row of `Vectors` registers, the last of them `tail` lanes wide.
template <class T, int Vectors, bool Tail, bool Weighted>
inline __attribute__((always_inline)) void add_row(Vector<T>* sums, const T* in, int tail, T weight) {
  for (int v = 0; v < Vectors; ++v) {
    const T* from = in + v * lanes<T>;
    const Vector<T> x = Tail && v == Vectors - 1 ? load_partial(from, tail) : load(from);
    if constexpr (Weighted)
      sums[v] += x * weight;
    else
      sums[v] += x;
  }
}

// Rows [first, last), columns [column, column + width). last_edge: the last edge that may be looked ahead to.
template <class T, int Vectors, bool Tail, bool Weighted>
void aggregate_block(const Aggregate<T>& a, std::int64_t first, std::int64_t last, std::int64_t column, int tail,
                     std::int64_t last_edge) {
  // One narrow row would wait for its own additions: take several edges at once, in sums of their own.
  constexpr int ways = Vectors == 1 ? 4 : Vectors <= 3 ? 2 : 1;
  constexpr std::int64_t distance = prefetch_distance<Vectors>;
  const T* const in = a.in + column;

  const auto weight = [&](std::int64_t edge, std::int64_t source) {
    T w = 1;
    if constexpr (Weighted) {
      if (a.value != nullptr) w = a.value[edge];
      if (a.column_scale != nullptr) w *= a.column_scale[source];
    }
    return w;
  };
  const auto fetch_ahead = [&](std::int64_t edge) __attribute__((always_inline)) {
    const std::int64_t ahead = edge + distance < last_edge ? edge + distance : last_edge;
    prefetch(in + a.index[ahead] * a.in_stride, Vectors * vector_bytes);
  };

  for (std::int64_t row = first; row < last; ++row) {
    std::int64_t edge = a.begin[row];
    const std::int64_t end = a.end[row];
    if (a.accumulate && edge == end) continue;  // a peer's columns touch few of the rows
    Vector<T> sums[ways][Vectors] = {};
    for (; edge + ways <= end; edge += ways)
      for (int way = 0; way < ways; ++way) {
        fetch_ahead(edge + way);
        const std::int64_t source = a.index[edge + way];
        add_row<T, Vectors, Tail, Weighted>(sums[way], in + source * a.in_stride, tail, weight(edge + way, source));
      }
    for (; edge < end; ++edge) {
      fetch_ahead(edge);
      const std::int64_t source = a.index[edge];
      add_row<T, Vectors, Tail, Weighted>(sums[0], in + source * a.in_stride, tail, weight(edge, source));
    }
    T* const out = a.out + row * a.out_stride + column;
    const T scale = a.row_scale != nullptr ? a.row_scale[row] : T(1);
    for (int v = 0; v < Vectors; ++v) {
      Vector<T> sum = sums[0][v];
      for (int way = 1; way < ways; ++way) sum += sums[way][v];
      if (a.row_scale != nullptr) sum *= scale;
      T* const to = out + v * lanes<T>;
      if (Tail && v == Vectors - 1) {
        if (a.accumulate) sum += load_partial(to, tail);
        store_partial(to, sum, tail);
      } else {
        if (a.accumulate) sum += load(to);
        store(to, sum);
      }
    }
  }
}

template <class T>
using AggregateBlock = void (*)(const Aggregate<T>&, std::int64_t, std::int64_t, std::int64_t, int, std::int64_t);

template <class T, bool Tail, bool Weighted, int Vectors = max_accumulators>
AggregateBlock<T> find_block(int vectors) {
  if (vectors == Vectors) return aggregate_block<T, Vectors, Tail, Weighted>;
  if constexpr (Vectors > 1) return find_block<T, Tail, Weighted, Vectors - 1>(vectors);
  return nullptr;
}

template <class T>
AggregateBlock<T> find_block(int vectors, bool tail, bool weighted) {
  if (tail) return weighted ? find_block<T, true, true>(vectors) : find_block<T, true, false>(vectors);
  return weighted ? find_block<T, false, true>(vectors) : find_block<T, false, false>(vectors);
}

// All columns of rows [first, last), in equal blocks that fit the registers.
template <class T>
void aggregate_rows(const Aggregate<T>& a, std::int64_t first, std::int64_t last, std::int64_t last_edge) {
  const bool weighted = a.value != nullptr || a.column_scale != nullptr;
  const std::int64_t vectors = (a.dim + lanes<T> - 1) / lanes<T>;
  const std::int64_t blocks = (vectors + max_accumulators - 1) / max_accumulators;
  const int tail = static_cast<int>(a.dim % lanes<T>);
  std::int64_t done = 0;
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t upto = vectors * (block + 1) / blocks;
    find_block<T>(static_cast<int>(upto - done), tail != 0 && upto == vectors, weighted)(
        a, first, last, done * lanes<T>, tail, last_edge);
    done = upto;
  }
}

template <class T>
void aggregate(const Aggregate<T>& a, int threads) {
  if (a.dim <= 0) return;
  for_balanced_rows(a.begin, a.end, a.first_row, a.last_row, a.dim, threads,
                    [&](std::int64_t first, std::int64_t last, std::int64_t last_edge) {
                      aggregate_rows(a, first, last, last_edge);
                    });
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
