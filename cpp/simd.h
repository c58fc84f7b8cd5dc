// One vector register of T, with partial loads and stores for the end of a row.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

namespace halocast::HALOCAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int max_accumulators = 16;  // of 32 registers
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int max_accumulators = 8;  // of 16
#else
constexpr int vector_bytes = 16;
constexpr int max_accumulators = 8;  // of 16
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(vector_bytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(vector_bytes)));
};

template <class T>
using Vector = typename VectorOf<T>::type;

template <class T>
constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof v);
}

// Starts fetching `bytes` bytes. Forced inline: gcc takes a function that only prefetches for one without effect, and
// drops its calls.
inline __attribute__((always_inline)) void prefetch(const void* from, std::int64_t bytes) {
  for (std::int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(static_cast<const char*>(from) + byte);
}

#if defined(__AVX512F__)

inline Vector<float> load_partial(const float* from, int count) {
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from);
}
inline Vector<double> load_partial(const double* from, int count) {
  return _mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), from);
}
inline void store_partial(float* to, Vector<float> v, int count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), v);
}
inline void store_partial(double* to, Vector<double> v, int count) {
  _mm512_mask_storeu_pd(to, static_cast<__mmask8>((1u << count) - 1), v);
}

#elif defined(__AVX2__)

inline __m256i first_lanes32(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_lanes64(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
inline Vector<float> load_partial(const float* from, int count) {
  return _mm256_maskload_ps(from, first_lanes32(count));
}
inline Vector<double> load_partial(const double* from, int count) {
  return _mm256_maskload_pd(from, first_lanes64(count));
}
inline void store_partial(float* to, Vector<float> v, int count) { _mm256_maskstore_ps(to, first_lanes32(count), v); }
inline void store_partial(double* to, Vector<double> v, int count) { _mm256_maskstore_pd(to, first_lanes64(count), v); }

#else

template <class T>
inline Vector<T> load_partial(const T* from, int count) {
  Vector<T> v{};
  for (int lane = 0; lane < count; ++lane) v[lane] = from[lane];
  return v;
}
template <class T>
inline void store_partial(T* to, Vector<T> v, int count) {
  for (int lane = 0; lane < count; ++lane) to[lane] = v[lane];
}

#endif

}  // namespace
}  // namespace halocast::HALOCAST_ISA
