// What follows a layer's product: bias, LayerNorm, ReLU and dropout in one pass over the rows, and its backward.
#pragma once

#include <cmath>
#include <type_traits>

#include "columns.h"
#include "kernels.h"
#include "parallel.h"
#include "philox.h"

namespace halocast::HALOCAST_ISA {
namespace {

// Rows that one chunk takes: enough work to pay for taking it.
inline std::int64_t rows_per_chunk(std::int64_t dim) {
  constexpr std::int64_t elements = 1 << 15;
  return dim >= elements ? 1 : elements / (dim > 0 ? dim : 1);
}

// Calls run(row) for all rows, in chunks on threads.
template <class Run>
void for_rows(std::int64_t rows, std::int64_t dim, int threads, const Run& run) {
  const std::int64_t step = rows_per_chunk(dim);
  parallel_for((rows + step - 1) / step, threads, [&](std::int64_t chunk) {
    const std::int64_t last = (chunk + 1) * step < rows ? (chunk + 1) * step : rows;
    for (std::int64_t row = chunk * step; row < last; ++row) run(row);
  });
}

// Turns a run-time flag into a type, so that the inner loops hold no branches.
template <class Function>
void with_flag(bool flag, const Function& function) {
  if (flag)
    function(std::true_type{});
  else
    function(std::false_type{});
}

template <bool Bias, class T>
void mean_and_rstd(const T* z, const T* bias, std::int64_t dim, T eps, T& mean, T& rstd) {
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < dim; ++j) sum += Bias ? z[j] + bias[j] : z[j];
  const T average = sum / static_cast<T>(dim);
  T squares = 0;
#pragma omp simd reduction(+ : squares)
  for (std::int64_t j = 0; j < dim; ++j) {
    const T difference = (Bias ? z[j] + bias[j] : z[j]) - average;
    squares += difference * difference;
  }
  mean = average;
  rstd = 1 / std::sqrt(squares / static_cast<T>(dim) + eps);
}

template <class T, bool Bias, bool Norm, bool Relu, bool Drop>
void epilogue_forward_row(const EpilogueForward<T>& e, std::int64_t row) {
  const T* const z = e.z + row * e.z_stride;
  T* const out = e.out + row * e.out_stride;
  T mean = 0;
  T rstd = 0;
  if constexpr (Norm) {
    mean_and_rstd<Bias>(z, e.bias, e.dim, e.eps, mean, rstd);
    e.mean[row] = mean;
    e.rstd[row] = rstd;
  }
  const auto below = static_cast<std::uint32_t>(e.dropout.threshold - 1);
  const T scale = static_cast<T>(e.dropout.scale);
  std::uint32_t words[words_at_once];
  const std::int64_t step = Drop ? words_at_once : e.dim;
  for (std::int64_t first = 0; first < e.dim; first += step) {
    const std::int64_t count = e.dim - first < step ? e.dim - first : step;
    if constexpr (Drop) philox_words(PhiloxRow(e.dropout.stream, e.dropout.nodes[row]), first, count, words);
    // z and out may be the same row: elementwise, which is what simd promises.
#pragma omp simd
    for (std::int64_t k = 0; k < count; ++k) {
      const std::int64_t j = first + k;
      T t = z[j];
      if constexpr (Bias) t += e.bias[j];
      if constexpr (Norm) t = (t - mean) * rstd * e.gamma[j] + e.beta[j];
      if constexpr (Relu) t = t < 0 ? T(0) : t;  // NaN stays
      if constexpr (Drop) t = words[k] > below ? t * scale : T(0);
      out[j] = t;
    }
  }
}

template <class T>
void epilogue_forward(const EpilogueForward<T>& e, int threads) {
  with_flag(e.bias != nullptr, [&](auto bias) {
    with_flag(e.gamma != nullptr, [&](auto norm) {
      with_flag(e.relu, [&](auto relu) {
        with_flag(e.dropout.threshold != 0, [&](auto drop) {
          for_rows(e.rows, e.dim, threads, [&](std::int64_t row) {
            epilogue_forward_row<T, decltype(bias)::value, decltype(norm)::value, decltype(relu)::value,
                                 decltype(drop)::value>(e, row);
          });
        });
      });
    });
  });
}

enum ColumnOf { bias_column, beta_column, gamma_column };

// Gradient of the output -> gradient of what went into ReLU and dropout, in place.
template <class T, bool Relu, bool Drop>
void backward_through_mask(const EpilogueBackward<T>& e, std::int64_t row) {
  T* const grad = e.grad + row * e.grad_stride;
  const T scale = static_cast<T>(e.dropout.scale);
  if constexpr (Relu) {
    const T* const out = e.out + row * e.out_stride;
#pragma omp simd
    for (std::int64_t j = 0; j < e.dim; ++j) grad[j] = out[j] <= 0 ? T(0) : grad[j] * scale;
  } else if constexpr (Drop) {
    const auto below = static_cast<std::uint32_t>(e.dropout.threshold - 1);
    std::uint32_t words[words_at_once];
    for (std::int64_t first = 0; first < e.dim; first += words_at_once) {
      const std::int64_t count = e.dim - first < words_at_once ? e.dim - first : words_at_once;
      philox_words(PhiloxRow(e.dropout.stream, e.dropout.nodes[row]), first, count, words);
#pragma omp simd
      for (std::int64_t k = 0; k < count; ++k) grad[first + k] = words[k] > below ? grad[first + k] * scale : T(0);
    }
  }
}

// LayerNorm: with x̂ = (z + bias − mean) rstd and d = grad gamma, dz = rstd (d − mean(d) − x̂ mean(d x̂)).
template <class T, bool Bias>
void backward_through_norm(const EpilogueBackward<T>& e, BlockSums<T>& sums, std::int64_t row) {
  T* const grad = e.grad + row * e.grad_stride;
  const T* const z = e.z + row * e.z_stride;
  T* const sum_bias = sums.vector(bias_column);
  T* const sum_beta = sums.vector(beta_column);
  T* const sum_gamma = sums.vector(gamma_column);
  const T mean = e.mean[row];
  const T rstd = e.rstd[row];
  T total = 0;
  T projected = 0;
#pragma omp simd reduction(+ : total, projected)
  for (std::int64_t j = 0; j < e.dim; ++j) {
    const T normal = ((Bias ? z[j] + e.bias[j] : z[j]) - mean) * rstd;
    sum_beta[j] += grad[j];
    sum_gamma[j] += grad[j] * normal;
    const T d = grad[j] * e.gamma[j];
    grad[j] = d;
    total += d;
    projected += d * normal;
  }
  const T mean_d = total / static_cast<T>(e.dim);
  const T mean_projected = projected / static_cast<T>(e.dim);
#pragma omp simd
  for (std::int64_t j = 0; j < e.dim; ++j) {
    const T normal = ((Bias ? z[j] + e.bias[j] : z[j]) - mean) * rstd;
    const T dz = rstd * (grad[j] - mean_d - normal * mean_projected);
    grad[j] = dz;
    sum_bias[j] += dz;
  }
}

template <class T>
void epilogue_backward(const EpilogueBackward<T>& e, int threads) {
  const bool normalised = e.gamma != nullptr;
  const int vectors = normalised ? 3 : 1;
  with_flag(e.out != nullptr, [&](auto relu) {
    with_flag(e.dropout.threshold != 0, [&](auto drop) {
      sum_rows<T>(e.rows, e.dim, vectors, e.workspace, threads, [&](BlockSums<T>& sums, std::int64_t row) {
        backward_through_mask<T, decltype(relu)::value, decltype(drop)::value>(e, row);
        if (normalised) {
          with_flag(e.bias != nullptr,
                    [&](auto bias) { backward_through_norm<T, decltype(bias)::value>(e, sums, row); });
        } else {
          const T* const grad = e.grad + row * e.grad_stride;
          T* const sum = sums.vector(bias_column);
#pragma omp simd
          for (std::int64_t j = 0; j < e.dim; ++j) sum[j] += grad[j];
        }
      });
    });
  });
  const std::int64_t blocks = row_blocks(e.rows);
  add_blocks(e.workspace, blocks, e.dim, vectors, bias_column, e.grad_bias, e.accumulate);
  if (!normalised) return;
  add_blocks(e.workspace, blocks, e.dim, vectors, beta_column, e.grad_beta, e.accumulate);
  add_blocks(e.workspace, blocks, e.dim, vectors, gamma_column, e.grad_gamma, e.accumulate);
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
