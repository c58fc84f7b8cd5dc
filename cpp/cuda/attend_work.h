// What the kernels of attention and of extremes do, as work for numbered warps; on a GPU each warp runs one number, on
// a host (emulate_attend.cpp) one after the other.
#pragma once

#include <type_traits>

#include "attend.h"
#include "attend_backward.h"
#include "extreme.h"

namespace halocast::attention {

template <class T, int vector, bool gat>
struct AttendWork {
  static constexpr const char* name = "attend_forward";
  AttendForward<T> job;
  HeadShape shape;
  RoundKeys keys;

  std::int64_t warps() const { return job.by_target.rows * shape.blocks; }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    attend_row<vector, gat>(warp, job, keys, shape, number / shape.blocks, number % shape.blocks);
  }
};

template <class T>
struct FinishWork {
  static constexpr const char* name = "attend_finish";
  AttendFinish<T> job;

  std::int64_t warps() const { return job.rows; }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    warp.each([&](int lane) { finish_row(job, number, lane); });
  }
};

template <class T>
struct PackWork {
  static constexpr const char* name = "attend_pack";
  AttendPack<T> job;
  HeadShape shape;

  std::int64_t warps() const { return job.rows * shape.blocks; }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    pack_row(warp, job, shape, number / shape.blocks, number % shape.blocks);
  }
};

inline std::int64_t target_chunks(std::int64_t targets) { return (targets + chunk_targets - 1) / chunk_targets; }

template <class T, int vector, bool gat>
struct TargetsWork {
  static constexpr const char* name = "attend_backward of targets";
  AttendBackward<T> job;
  HeadShape shape;
  RoundKeys keys;

  std::int64_t warps() const { return (gat ? job.by_target.rows : target_chunks(job.by_target.rows)) * shape.blocks; }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    if constexpr (gat)
      gat_target_row<vector>(warp, job, keys, shape, number / shape.blocks, number % shape.blocks);
    else
      gatv2_target_chunk<vector>(warp, job, keys, shape, number / shape.blocks, number % shape.blocks);
  }
};

template <class T>
struct WeightWork {
  static constexpr const char* name = "attend_backward of the weight";
  AttendBackward<T> job;
  std::int64_t chunks;

  std::int64_t warps() const { return job.attention.heads * job.attention.dim; }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    add_weight_column(warp, job, chunks, number);
  }
};

template <class T, int vector, bool gat>
struct SourcesWork {
  static constexpr const char* name = "attend_backward of sources";
  AttendBackward<T> job;
  HeadShape shape;
  RoundKeys keys;

  std::int64_t warps() const { return job.by_source.rows * shape.blocks; }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    source_row<vector, gat>(warp, job, keys, shape, number / shape.blocks, number % shape.blocks);
  }
};

// Warps for groups of `shape.lanes` lanes, shape.blocks to a row.
inline std::int64_t warps_of_groups(const HeadShape& shape, std::int64_t rows) {
  return (rows * shape.blocks + shape.heads - 1) / shape.heads;
}

template <class T, int vector, bool minimum>
struct ExtremeWork {
  static constexpr const char* name = "extreme_forward";
  ExtremeForward<T> job;
  HeadShape shape;

  std::int64_t warps() const { return warps_of_groups(shape, job.by_target.rows); }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    warp.each([&](int lane) {
      const std::int64_t group = number * shape.heads + (lane >> shape.shift);
      merge_extremes<vector, minimum>(job, shape, group, lane & (shape.lanes - 1));
    });
  }
};

template <class T, int vector>
struct ExtremeBackwardWork {
  static constexpr const char* name = "extreme_backward";
  ExtremeBackward<T> job;
  HeadShape shape;

  std::int64_t warps() const { return warps_of_groups(shape, job.by_source.rows); }
  HALOCAST_DEVICE void operator()(const Warp& warp, std::int64_t number) const {
    warp.each([&](int lane) {
      const std::int64_t group = number * shape.heads + (lane >> shape.shift);
      extreme_backward<vector>(job, shape, group, lane & (shape.lanes - 1));
    });
  }
};

// Calls run(std::integral_constant) of the elements that one access moves.
template <class T, class Run>
void with_vector(int vector, const Run& run) {
  constexpr int wide = 16 / sizeof(T);
  if (vector == wide) return run(std::integral_constant<int, wide>{});
  run(std::integral_constant<int, 1>{});
}

// Calls run(std::bool_constant).
template <class Run>
void with_flag(bool flag, const Run& run) {
  if (flag) return run(std::true_type{});
  run(std::false_type{});
}

template <class T>
Alignment<T> alignment_of(const Attention<T>& a) {
  Alignment<T> alignment(a.dim);
  return alignment.add(a.z, a.z_stride).add(a.target, a.target_stride).add(a.weight, 0);
}

// start(work) starts one kernel; they run one after the other.
template <class T, class Start>
void start_all(const AttendForward<T>& f, const Start& start) {
  const Attention<T>& a = f.attention;
  const HeadShape shape = head_shape(a.heads, a.dim, alignment_of(a).add(f.out, f.out_stride).vector());
  with_vector<T>(shape.vector, [&](auto vector) {
    with_flag(a.weight == nullptr, [&](auto gat) {
      start(AttendWork<T, decltype(vector)::value, decltype(gat)::value>{f, shape,
                                                                         codec::round_keys_of(a.dropout.stream.seed)});
    });
  });
}

template <class T, class Start>
void start_all(const AttendFinish<T>& f, const Start& start) {
  start(FinishWork<T>{f});
}

template <class T, class Start>
void start_all(const AttendPack<T>& p, const Start& start) {
  start(PackWork<T>{p, head_shape(p.heads, p.dim, 1)});
}

template <class T, class Start>
void start_all(const AttendBackward<T>& b, const Start& start) {
  const Attention<T>& a = b.attention;
  Alignment<T> alignment = alignment_of(a).add(b.grad, b.grad_stride).add(b.grad_z, b.grad_z_stride);
  alignment.add(b.grad_target, b.grad_target_stride).add(reinterpret_cast<const T*>(b.workspace), 0);
  const HeadShape shape = head_shape(a.heads, a.dim, alignment.vector());
  const RoundKeys keys = codec::round_keys_of(a.dropout.stream.seed);
  with_vector<T>(shape.vector, [&](auto vector) {
    with_flag(a.weight == nullptr, [&](auto gat) {
      start(TargetsWork<T, decltype(vector)::value, decltype(gat)::value>{b, shape, keys});
      if (!decltype(gat)::value) start(WeightWork<T>{b, target_chunks(b.by_target.rows)});
      start(SourcesWork<T, decltype(vector)::value, decltype(gat)::value>{b, shape, keys});
    });
  });
}

template <class T, class Start>
void start_all(const ExtremeForward<T>& f, const Start& start) {
  Alignment<T> alignment(f.dim);
  alignment.add(f.in, f.in_stride).add(f.value, f.value_stride).add(f.ties, f.ties_stride);
  const HeadShape shape = row_shape(f.dim, alignment.vector());
  with_vector<T>(shape.vector, [&](auto vector) {
    with_flag(f.minimum, [&](auto minimum) {
      start(ExtremeWork<T, decltype(vector)::value, decltype(minimum)::value>{f, shape});
    });
  });
}

template <class T, class Start>
void start_all(const ExtremeBackward<T>& b, const Start& start) {
  Alignment<T> alignment(b.dim);
  alignment.add(b.in, b.in_stride).add(b.value, b.value_stride).add(b.share, b.share_stride);
  alignment.add(b.grad_in, b.grad_in_stride);
  const HeadShape shape = row_shape(b.dim, alignment.vector());
  with_vector<T>(shape.vector, [&](auto vector) { start(ExtremeBackwardWork<T, decltype(vector)::value>{b, shape}); });
}

}  // namespace halocast::attention
