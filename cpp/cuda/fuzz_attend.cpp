// The emulated kernels of attention and extremes on random jobs whose matrices end where their data does, for the
// compiler's sanitizers:
//   g++ -std=c++17 -O1 -fsanitize=address,undefined -o fuzz fuzz_attend.cpp && ./fuzz 1000
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "emulate_attend.cpp"

namespace {

std::mt19937_64 generator(1);

std::int64_t between(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}

bool chance() { return between(0, 1) != 0; }

// A block of its own on the heap, `offset` elements after where the allocator starts it.
template <class T>
class Block {
 public:
  explicit Block(std::int64_t count, std::int64_t offset = 0)
      : memory_(new T[static_cast<std::size_t>(count + offset)]()), first_(memory_.get() + offset) {}
  T* get() { return first_; }
  T& operator[](std::int64_t i) { return first_[i]; }

 private:
  std::unique_ptr<T[]> memory_;
  T* first_;
};

template <class T>
T random_value() {
  if (between(0, 20000) == 0) return chance() ? static_cast<T>(-INFINITY) : static_cast<T>(NAN);
  return static_cast<T>(std::normal_distribution<double>()(generator));
}

// Rows with some columns between them, whose last one ends the memory.
template <class T>
class Matrix {
 public:
  Matrix(std::int64_t rows, std::int64_t columns, bool padded)
      : stride_(columns + (padded ? between(0, 5) : 0)),
        count_(rows == 0 ? 0 : (rows - 1) * stride_ + columns),
        block_(count_, padded ? between(0, 3) : 0) {
    for (std::int64_t i = 0; i < count_; ++i) block_[i] = random_value<T>();
  }
  T* get() { return block_.get(); }
  std::int64_t stride() const { return stride_; }

 private:
  std::int64_t stride_, count_;
  Block<T> block_;
};

// Random edges by rows, with entries between rows that belong to nobody.
struct Rows {
  Rows(std::int64_t rows, std::int64_t others) : begin(rows), end(rows), count(rows) {
    std::vector<std::int32_t> names;
    for (std::int64_t row = 0; row < rows; ++row) {
      for (std::int64_t gap = between(0, 2); gap > 0; --gap) names.push_back(-1);
      begin[row] = static_cast<std::int64_t>(names.size());
      for (std::int64_t e = others == 0 ? 0 : between(0, between(0, 50)); e > 0; --e)
        names.push_back(static_cast<std::int32_t>(between(0, others - 1)));
      end[row] = static_cast<std::int64_t>(names.size());
    }
    entries = static_cast<std::int64_t>(names.size());
    index = std::make_unique<Block<std::int32_t>>(entries);
    for (std::int64_t i = 0; i < entries; ++i) (*index)[i] = names[static_cast<std::size_t>(i)];
  }
  BlockRows rows() { return {begin.get(), end.get(), index->get(), count}; }

  Block<std::int64_t> begin, end;
  std::unique_ptr<Block<std::int32_t>> index;
  std::int64_t count, entries = 0;
};

template <class T>
void run_attention() {
  constexpr std::int64_t most[][2] = {{2, 600}, {8, 70}, {8, 70}, {64, 9}};
  const auto& shape = most[between(0, 3)];
  const std::int64_t heads = between(1, shape[0]), dim = between(1, shape[1]);
  const std::int64_t targets = between(0, 35), sources = between(0, 25), width = heads * dim;
  const bool gat = chance(), with_edges = gat && chance(), padded = chance();
  const auto matrix = [&](std::int64_t rows, std::int64_t columns) { return Matrix<T>(rows, columns, padded); };
  Rows by_target(targets, sources), by_source(sources, targets);
  Matrix<T> z = matrix(sources, width), source_logit = matrix(sources, heads), target_logit = matrix(targets, heads),
            target = matrix(targets, width), out = matrix(targets, width), grad = matrix(targets, width),
            grad_z = matrix(sources, width), grad_source = matrix(sources, heads), grad_target = matrix(targets, width),
            grad_half = matrix(targets, heads);
  Matrix<T> weight(1, width, false), edges(by_target.entries, heads, false),
      grad_edges(by_target.entries, heads, false), maximum(targets, heads, false), sum(targets, heads, false),
      packed(targets, 4 * heads, false), grad_weight(1, width, false);
  Block<std::int64_t> entry(by_source.entries), target_nodes(targets), source_nodes(sources);
  for (std::int64_t i = 0; i < by_source.entries; ++i)
    entry[i] = by_target.entries == 0 ? 0 : between(0, by_target.entries - 1);
  for (std::int64_t i = 0; i < targets; ++i) target_nodes[i] = between(0, std::int64_t{1} << 40);
  for (std::int64_t i = 0; i < sources; ++i) source_nodes[i] = between(0, 1 << 20);
  const bool edge_logits = with_edges && by_target.entries > 0;

  Attention<T> a{};
  a.heads = heads, a.dim = dim, a.slope = static_cast<T>(0.2), a.z = z.get(), a.z_stride = z.stride();
  if (gat) {
    a.source_logit = source_logit.get(), a.source_logit_stride = source_logit.stride();
    a.target_logit = target_logit.get(), a.target_logit_stride = target_logit.stride();
    a.edge_logit = edge_logits ? edges.get() : nullptr;
  } else {
    a.target = target.get(), a.target_stride = target.stride(), a.weight = weight.get();
  }
  a.dropout = {chance() ? 0 : std::uint64_t{1} << 31, 2.0, {generator(), 3, 5u << 28}, target_nodes.get()};
  a.source_nodes = source_nodes.get();
  const auto turn = static_cast<int>(between(0, 31)), step = static_cast<int>(2 * between(0, 15) + 1);
  const auto emulate = [&](const auto& job) { attention::emulate(job, turn, step); };

  emulate(AttendForward<T>{a, by_target.rows(), maximum.get(), sum.get(), out.get(), out.stride()});
  emulate(AttendFinish<T>{targets, heads, dim, sum.get(), out.get(), out.stride()});
  emulate(AttendPack<T>{targets, heads, dim, a.target_logit, a.target_logit_stride, maximum.get(), sum.get(), out.get(),
                        out.stride(), grad.get(), grad.stride(), packed.get()});
  const std::int64_t chunks = attention::target_chunks(targets);
  Block<T> workspace(chunks * width);
  AttendBackward<T> b{};
  b.attention = a, b.by_target = by_target.rows(), b.by_source = by_source.rows(), b.entry = entry.get();
  b.packed = packed.get(), b.grad = grad.get(), b.grad_stride = grad.stride();
  b.accumulate = chance();
  const bool in_place = !b.accumulate && dim <= attention::in_place_dim && chance();
  b.grad_z = in_place ? z.get() : grad_z.get(), b.grad_z_stride = in_place ? z.stride() : grad_z.stride();
  if (gat) {
    b.grad_source_logit = grad_source.get(), b.grad_source_logit_stride = grad_source.stride();
    b.grad_target_logit = grad_half.get(), b.grad_target_logit_stride = grad_half.stride();
    b.grad_edge_logit = edge_logits ? grad_edges.get() : nullptr;
  } else {
    b.grad_target = grad_target.get(), b.grad_target_stride = grad_target.stride();
    b.grad_weight = grad_weight.get(), b.workspace = reinterpret_cast<double*>(workspace.get());
  }
  emulate(b);
}

template <class T>
void run_extremes() {
  const std::int64_t dim = between(0, 9) == 0 ? between(250, 1100) : between(1, 70);
  const std::int64_t targets = between(0, 40), sources = between(0, 30);
  const bool padded = chance();
  Rows by_target(targets, sources), by_source(sources, targets);
  Matrix<T> features(sources, dim, padded), grad(sources, dim, padded), value(targets, dim, padded),
      ties(targets, dim, padded), share(targets, dim, padded);
  const auto turn = static_cast<int>(between(0, 31)), step = static_cast<int>(2 * between(0, 15) + 1);
  attention::emulate(ExtremeForward<T>{by_target.rows(), chance(), dim, features.get(), features.stride(), value.get(),
                                       value.stride(), ties.get(), ties.stride()},
                     turn, step);
  Matrix<T>& to = chance() ? grad : features;
  attention::emulate(
      ExtremeBackward<T>{by_source.rows(), dim, features.get(), features.stride(), value.get(), value.stride(),
                         share.get(), share.stride(), to.get(), to.stride(), &to == &grad && chance()},
      turn, step);
}

}  // namespace

int main(int argc, char** argv) {
  const int times = argc > 1 ? std::atoi(argv[1]) : 1000;
  for (int i = 0; i < times; ++i) {
    run_attention<float>();
    run_attention<double>();
    run_extremes<float>();
    run_extremes<double>();
  }
  return 0;
}
