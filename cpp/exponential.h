// e^x for x <= 0, for numbers and for whole vector registers.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

namespace halocast::HALOCAST_ISA {
namespace {

// The integers that hold the bits of F.
template <class F>
struct BitsOf;
template <>
struct BitsOf<float> {
  typedef std::uint32_t type;
};
template <>
struct BitsOf<double> {
  typedef std::uint64_t type;
};
template <>
struct BitsOf<Vector<float>> {
  typedef std::uint32_t type __attribute__((vector_size(vector_bytes)));
};
template <>
struct BitsOf<Vector<double>> {
  typedef std::uint64_t type __attribute__((vector_size(vector_bytes)));
};

// power · 2^n, n being what `shifted` holds in its low bits.
template <class F>
inline F scale_by_power_of_two(F power, F shifted, unsigned bias, unsigned mantissa_bits) {
  typename BitsOf<F>::type bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + bias) << mantissa_bits;
  F scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return power * scale;
}

// Within 2 units in the last place; NaN stays; what is below the smallest normal number is 0. x = n ln 2 + r, e^r by a
// polynomial on |r| <= ln 2 / 2 (Cephes expf), then n into the exponent bits. F is float or a register of them; loops
// over numbers are vectorised by the compiler.
template <class F>
inline F exp_nonpositive(F x, float) {
  constexpr float round_magic = 12582912.f;  // 1.5 · 2^23: adding it rounds to an integer in the low bits
  const F lowest = F{} - 87.0f;
  const F clamped = x < lowest ? lowest : x;
  const F shifted = clamped * 1.44269504088896341f + round_magic;
  const F n = shifted - round_magic;
  const F r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
  F p = F{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const F power = p * r * r + r + 1.0f;
  return x < lowest ? F{} : scale_by_power_of_two(power, shifted, 127, 23);
}

// The same for double: the Taylor series to r^13, whose remainder on |r| <= ln 2 / 2 is below 5e-18.
template <class F>
inline F exp_nonpositive(F x, double) {
  constexpr double round_magic = 6755399441055744.0;  // 1.5 · 2^52
  const F lowest = F{} - 708.0;
  const F clamped = x < lowest ? lowest : x;
  const F shifted = clamped * 1.44269504088896340736 + round_magic;
  const F n = shifted - round_magic;
  const F r = (clamped - n * 0.693145751953125) - n * 1.42860682030941723212e-6;
  constexpr double inverse_factorials[] = {
      1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040,
      1.0 / 720,       1.0 / 120,      1.0 / 24,      1.0 / 6,      0.5};
  F p = F{} + 1.0 / 6227020800;
  for (const double coefficient : inverse_factorials) p = p * r + coefficient;
  const F power = p * r * r + r + 1.0;
  return x < lowest ? F{} : scale_by_power_of_two(power, shifted, 1023, 52);
}

inline float exp_nonpositive(float x) { return exp_nonpositive(x, float{}); }
inline double exp_nonpositive(double x) { return exp_nonpositive(x, double{}); }
inline Vector<float> exp_nonpositive(Vector<float> x) { return exp_nonpositive(x, float{}); }
inline Vector<double> exp_nonpositive(Vector<double> x) { return exp_nonpositive(x, double{}); }

}  // namespace
}  // namespace halocast::HALOCAST_ISA
