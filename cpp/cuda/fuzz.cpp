// The emulated kernels on random jobs whose buffers end where their data does, for the compiler's sanitizers:
//   g++ -std=c++17 -O1 -ffp-contract=off -fsanitize=address,undefined -o fuzz fuzz.cpp && ./fuzz 1000
#include <cstdio>
#include <memory>
#include <random>

#include "emulate.cpp"

namespace {

std::mt19937_64 generator(1);

std::int64_t between(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}

// A block of its own on the heap, `offset` elements after where the allocator starts it.
template <class T>
class Block {
 public:
  explicit Block(std::int64_t count, std::int64_t offset = 0)
      : memory_(new T[static_cast<std::size_t>(count + offset)]), first_(memory_.get() + offset) {}
  T* get() { return first_; }
  T& operator[](std::int64_t i) { return first_[i]; }

 private:
  std::unique_ptr<T[]> memory_;
  T* first_;
};

float random_value(bool one_sided) {
  if (between(0, 20000) == 0) return between(0, 1) != 0 ? INFINITY : NAN;
  const auto value = static_cast<float>(std::normal_distribution<double>()(generator));
  return one_sided ? std::fabs(value) : value;
}

// False where the rows that came back are not those that were sent, as far as their widths can tell.
bool run_one() {
  constexpr int widths_known[] = {1, 2, 3, 4, 5, 6, 8, 16, 32};
  const std::int64_t dim = between(0, 9) == 0 ? between(1000, 4096) : between(1, 300);
  const std::int64_t count = between(0, dim > 300 ? 5 : 40);
  const std::int64_t stride = dim + between(0, 5), matrix_rows = count + between(0, 3);
  const bool one_sided = between(0, 1) != 0;
  const auto rounding = static_cast<int>(between(0, 2));
  const int same_width = between(0, 1) != 0 ? widths_known[between(0, 8)] : 0;

  Block<std::uint8_t> widths(count), headers(2 * codec::header_bytes);
  Block<std::int64_t> offsets(count), header_offsets(2), nodes(count), index(count);
  std::int64_t wire_bytes = codec::header_bytes;
  for (std::int64_t row = 0; row < count; ++row) {
    const int width = same_width != 0 ? same_width : widths_known[between(0, 8)];
    widths[row] = static_cast<std::uint8_t>(width);
    offsets[row] = wire_bytes;
    wire_bytes += codec::record_bytes(width, dim, one_sided, rounding == 2);
    nodes[row] = between(0, std::int64_t{1} << 40);
    index[row] = count - 1 - row;
  }
  header_offsets[0] = 0;
  header_offsets[1] = wire_bytes;
  wire_bytes += codec::header_bytes;

  const std::int64_t floats = matrix_rows == 0 ? 0 : (matrix_rows - 1) * stride + dim;
  Block<float> rows(floats, between(0, 4)), out(floats, between(0, 4)), ranges(count);
  for (std::int64_t i = 0; i < floats; ++i) {
    rows[i] = random_value(one_sided);
    out[i] = 0.0f;
  }
  for (std::int64_t i = 0; i < 2 * codec::header_bytes; ++i) headers[i] = static_cast<std::uint8_t>(i);
  Block<std::uint8_t> wire(wire_bytes, between(0, 7));
  const bool with_index = between(0, 1) != 0;
  std::int64_t first_bad = count;
  const auto turn = static_cast<int>(between(0, 31)), step = static_cast<int>(2 * between(0, 15) + 1);
  const auto seed = generator();
  emulate_pack(rows.get(), stride, true, with_index ? index.get() : nullptr, wire.get(), wire_bytes, widths.get(),
               offsets.get(), count, dim, one_sided, rounding, seed, 3, 1u << 28, nodes.get(), headers.get(),
               header_offsets.get(), 2, between(0, 1) != 0 ? ranges.get() : nullptr, &first_bad, turn, step);
  const auto unpack = [&](std::int64_t bytes) {
    std::int64_t outside = count;
    const bool adding = between(0, 1) != 0;
    emulate_unpack(wire.get(), bytes, widths.get(), offsets.get(), count, dim, one_sided, rounding, seed, 3, 1u << 28,
                   nodes.get(), out.get(), stride, true, with_index ? index.get() : nullptr, adding, &outside, turn,
                   step);
    return outside;
  };
  if (unpack(wire_bytes) != count) return false;
  for (std::int64_t row = 0; row < count && first_bad == count; ++row)
    for (std::int64_t j = 0; j < dim; ++j) {
      const std::int64_t at = (with_index ? index[row] : row) * stride + j;
      const float error = std::fabs(rows[at] - out[at]);
      if (widths[row] == 32 ? codec::bits_of(rows[at]) != codec::bits_of(out[at])
                            : error > (widths[row] == 16  ? 0.02f
                                       : widths[row] == 8 ? 0.1f
                                                          : INFINITY))
        return false;
    }

  // Whatever the bytes, widths and places of records are, an unpack stays within its buffers.
  for (std::int64_t i = 0; i < wire_bytes; ++i) wire[i] = static_cast<std::uint8_t>(between(0, 255));
  for (std::int64_t row = 0; row < count; ++row) {
    if (between(0, 3) == 0) widths[row] = static_cast<std::uint8_t>(between(0, 255));
    if (between(0, 3) == 0) offsets[row] = between(-10, wire_bytes + 10);
    if (between(0, 9) == 0) offsets[row] = between(INT64_MIN, INT64_MAX);
  }
  unpack(between(0, wire_bytes));
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int times = argc > 1 ? std::atoi(argv[1]) : 1000;
  for (int i = 0; i < times; ++i)
    if (!run_one()) {
      std::fprintf(stderr, "job %d came back changed\n", i);
      return 1;
    }
  return 0;
}
