// Losses over the listed rows, fused with their gradients.
#pragma once

#include <cmath>
#include <cstring>

#include "epilogue.h"
#include "exponential.h"
#include "kernels.h"

namespace halocast::HALOCAST_ISA {
namespace {

// log(1 + e) for 0 <= e <= 1: 2 atanh(s) with s = e / (2 + e) <= 1/3, by its series.
inline float log1p_unit(float e) {
  const float s = e / (2.0f + e);
  const float q = s * s;
  float p = 1.0f / 15;
  p = p * q + 1.0f / 13;
  p = p * q + 1.0f / 11;
  p = p * q + 1.0f / 9;
  p = p * q + 1.0f / 7;
  p = p * q + 1.0f / 5;
  p = p * q + 1.0f / 3;
  return 2 * s * (p * q + 1.0f);
}
inline double log1p_unit(double e) { return std::log1p(e); }

// Zero rows of the gradient that no loss touches.
template <class T, class Target>
void clear_unlisted(const Loss<T, Target>& l, int threads) {
  if (l.count == l.total_rows) return;
  for_rows(l.total_rows, l.classes, threads, [&](std::int64_t row) {
    if (!l.listed[row]) std::memset(l.grad + row * l.grad_stride, 0, static_cast<std::size_t>(l.classes) * sizeof(T));
  });
}

// Adds loss_of_row(row) over the listed rows into one double for each block.
template <class T, class Target, class LossOfRow>
void sum_losses(const Loss<T, Target>& l, int threads, const LossOfRow& loss_of_row) {
  parallel_for(row_blocks(l.count), threads, [&](std::int64_t block) {
    const std::int64_t last = (block + 1) * row_block < l.count ? (block + 1) * row_block : l.count;
    double total = 0;
    for (std::int64_t k = block * row_block; k < last; ++k) total += static_cast<double>(loss_of_row(l.rows[k]));
    l.losses[block] = total;
  });
}

template <class T>
T cross_entropy_row(const Loss<T, std::int64_t>& l, std::int64_t row) {
  const T* const x = l.logits + row * l.logits_stride;
  T* const grad = l.grad + row * l.grad_stride;
  const std::int64_t target = l.target[row];
  const T chosen = x[target];
  T top = x[0];
#pragma omp simd reduction(max : top)
  for (std::int64_t j = 0; j < l.classes; ++j) top = x[j] > top ? x[j] : top;
  T sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t j = 0; j < l.classes; ++j) {
    const T e = exp_nonpositive(x[j] - top);
    grad[j] = e;
    sum += e;
  }
  const T factor = l.scale / sum;
#pragma omp simd
  for (std::int64_t j = 0; j < l.classes; ++j) grad[j] *= factor;
  grad[target] -= l.scale;
  return std::log(sum) + top - chosen;
}

template <class T>
std::int64_t cross_entropy(const Loss<T, std::int64_t>& l, int threads) {
  for (std::int64_t k = 0; k < l.count; ++k)
    if (l.target[l.rows[k]] < 0 || l.target[l.rows[k]] >= l.classes) return l.rows[k];
  clear_unlisted(l, threads);
  sum_losses(l, threads, [&](std::int64_t row) { return cross_entropy_row(l, row); });
  return -1;
}

// Adds up max(x, 0) − x y + log(1 + e^−|x|), for y of 0 or 1. Labels become T first, a few at a time: in one loop with
// bytes the compiler would fill its registers with bytes, and most rows are too short for that.
template <class T>
T bce_row(const Loss<T, std::uint8_t>& l, std::int64_t row) {
  constexpr std::int64_t at_once = 128;
  T labels[at_once];
  T sum = 0;
  for (std::int64_t first = 0; first < l.classes; first += at_once) {
    const std::int64_t count = l.classes - first < at_once ? l.classes - first : at_once;
    const T* const x = l.logits + row * l.logits_stride + first;
    const std::uint8_t* const y = l.target + row * l.classes + first;
    T* const grad = l.grad + row * l.grad_stride + first;
    for (std::int64_t j = 0; j < count; ++j) labels[j] = y[j] != 0 ? T(1) : T(0);
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = 0; j < count; ++j) {
      const T logit = x[j];
      const T wrong = labels[j] != 0 ? -logit : logit;
      const T e = exp_nonpositive(-std::fabs(logit));
      const T sigmoid = (logit < 0 ? e : T(1)) / (1 + e);
      sum += (wrong > 0 ? wrong : T(0)) + log1p_unit(e);
      grad[j] = (sigmoid - labels[j]) * l.scale;
    }
  }
  return sum;
}

template <class T>
void bce(const Loss<T, std::uint8_t>& l, int threads) {
  clear_unlisted(l, threads);
  sum_losses(l, threads, [&](std::int64_t row) { return bce_row(l, row); });
}

}  // namespace
}  // namespace halocast::HALOCAST_ISA
