// A warp as the kernels see it: phases that every lane runs, and exchanges between lanes from one phase to the next.
//
// On the GPU a phase is the code of one lane and an exchange is a shuffle. Compiled by a host compiler, the same
// kernels run on a warp that takes its lanes one after the other through each phase, so that they can be tested without
// a GPU. Lanes of one phase may not read what another lane writes in it; the host's warp finds that out by running them
// in different orders.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(__CUDACC__)
#include <cmath>
#include <cstdlib>
#endif

namespace halocast::codec {

constexpr int warp_lanes = 32;

#if defined(__CUDACC__)

#define HALOCAST_DEVICE __device__ __forceinline__

// What each lane keeps from one phase to the next: in its registers.
template <class T>
class PerLane {
 public:
  HALOCAST_DEVICE T& operator[](int) { return value_; }

 private:
  T value_;
};

class Warp {
 public:
  HALOCAST_DEVICE Warp() : lane_(static_cast<int>(threadIdx.x % warp_lanes)) {}

  // What the lanes wrote to shared memory in a phase can be read in the next.
  template <class Phase>
  HALOCAST_DEVICE void each(const Phase& phase) const {
    phase(lane_);
    __syncwarp();
  }

  // Combines each lane's value with that of the lane `distance` (a power of two) away: both get the result.
  template <class T, class Combine>
  HALOCAST_DEVICE void combine(PerLane<T>& values, int distance, const Combine& combine) const {
    T& value = values[lane_];
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }

  // What another lane has, within a phase that every lane runs to here; `source` may differ from lane to lane.
  template <class T>
  HALOCAST_DEVICE T of(PerLane<T>& values, int source) const {
    return __shfl_sync(0xffffffffu, values[lane_], source);
  }

  HALOCAST_DEVICE bool any(PerLane<bool>& values) const { return __any_sync(0xffffffffu, values[lane_]) != 0; }

 private:
  int lane_;
};

// The type's alignment must hold: these are single instructions.
template <class T>
HALOCAST_DEVICE T load_as(const void* from) {
  return *static_cast<const T*>(from);
}

template <class T>
HALOCAST_DEVICE void store_as(void* to, T value) {
  *static_cast<T*>(to) = value;
}

// From memory that nobody writes while the kernel runs.
template <class T>
HALOCAST_DEVICE T load_constant_as(const void* from) {
  return __ldg(static_cast<const T*>(from));
}

// A load that the compilers leave where it is: they must not move it past later stores.
HALOCAST_DEVICE std::uint32_t load_word_here(const void* from) {
  std::uint32_t word;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(word) : "l"(from) : "memory");
  return word;
}

HALOCAST_DEVICE void lower(std::int64_t* value, std::int64_t candidate) {
  atomicMin(reinterpret_cast<long long*>(value), static_cast<long long>(candidate));
}

// The lower 32 bits of high:low shifted right by 0 to 31.
HALOCAST_DEVICE std::uint32_t shift_right(std::uint32_t low, std::uint32_t high, std::uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}

// One instruction each, where the compiler would take two.
HALOCAST_DEVICE std::uint64_t wide_product(std::uint32_t a, std::uint32_t b) {
  std::uint64_t product;
  asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}
HALOCAST_DEVICE std::uint32_t multiply_add(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  std::uint32_t sum;
  asm("mad.lo.u32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// Has the compiler compute a value here, once, not in parts wherever it is used.
template <class T>
HALOCAST_DEVICE const T* settled(const T* address) {
  asm("" : "+l"(address));
  return address;
}
HALOCAST_DEVICE int settled(int value) {
  asm("" : "+r"(value));
  return value;
}

// To nearest, ties to even.
HALOCAST_DEVICE std::int32_t round_to_int(float value) { return __float2int_rn(value); }
HALOCAST_DEVICE float square_root(float value) { return __fsqrt_rn(value); }

// The lower and the higher of two, or NaN if one of them is (the fminf of the standard drops NaN).
HALOCAST_DEVICE float lower_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
HALOCAST_DEVICE float higher_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// 16 and 8 bytes as one access.
using Quad = float4;
using Pair = float2;
using DoublePair = double2;

#else

#define HALOCAST_DEVICE inline

template <class T>
class PerLane {
 public:
  T& operator[](int lane) { return values_[lane]; }

 private:
  T values_[warp_lanes];
};

class Warp {
 public:
  // turn: where the order of the lanes starts; step: odd, how it goes on.
  Warp(int turn, int step) : turn_(turn), step_(step) {}

  template <class Phase>
  void each(const Phase& phase) const {
    for (int i = 0; i < warp_lanes; ++i) phase((turn_ + i * step_) % warp_lanes);
  }

  template <class T, class Combine>
  void combine(PerLane<T>& values, int distance, const Combine& combine) const {
    PerLane<T> before = values;
    for (int lane = 0; lane < warp_lanes; ++lane) values[lane] = combine(before[lane], before[lane ^ distance]);
  }

  template <class T>
  T of(PerLane<T>& values, int source) const {
    return values[source];
  }

  bool any(PerLane<bool>& values) const {
    bool found = false;
    for (int lane = 0; lane < warp_lanes; ++lane) found = found || values[lane];
    return found;
  }

 private:
  int turn_, step_;
};

// A GPU stops at a misaligned access; so does this.
inline void require_alignment(const void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) std::abort();
}

template <class T>
inline T load_as(const void* from) {
  require_alignment(from, sizeof(T));
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
inline void store_as(void* to, T value) {
  require_alignment(to, sizeof(T));
  std::memcpy(to, &value, sizeof value);
}

template <class T>
inline T load_constant_as(const void* from) {
  return load_as<T>(from);
}

inline std::uint32_t load_word_here(const void* from) { return load_as<std::uint32_t>(from); }

inline void lower(std::int64_t* value, std::int64_t candidate) { *value = candidate < *value ? candidate : *value; }

inline std::uint32_t shift_right(std::uint32_t low, std::uint32_t high, std::uint32_t shift) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(high) << 32 | low) >> shift);
}

inline std::uint64_t wide_product(std::uint32_t a, std::uint32_t b) { return static_cast<std::uint64_t>(a) * b; }
inline std::uint32_t multiply_add(std::uint32_t a, std::uint32_t b, std::uint32_t c) { return a * b + c; }

template <class T>
inline T settled(T value) {
  return value;
}

inline std::int32_t round_to_int(float value) { return static_cast<std::int32_t>(std::nearbyint(value)); }
inline float square_root(float value) { return std::sqrt(value); }

inline float lower_or_nan(float a, float b) { return a != a || b != b ? a + b : (a < b ? a : b); }
inline float higher_or_nan(float a, float b) { return a != a || b != b ? a + b : (a > b ? a : b); }

struct Quad {
  float x, y, z, w;
};
struct Pair {
  float x, y;
};
struct DoublePair {
  double x, y;
};

#endif

}  // namespace halocast::codec
