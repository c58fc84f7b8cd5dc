// The CPU's codec on random jobs whose buffers end where their data does, for the compiler's sanitizers. All instruction
// sets that are linked in must send the same bytes and restore the same values, on any number of threads.
//   fuzz_codec JOBS [SEED]
// tests/unit/kernels/test_codec_fuzz.py builds and runs it.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

#include "../codec.h"
#include "../codec_core.h"

// Left out of the link where the processor cannot run them; their addresses are then null.
namespace halocast {
namespace avx2 {
const CodecTable* codec_table() __attribute__((weak));
}
namespace avx512 {
const CodecTable* codec_table() __attribute__((weak));
}
}  // namespace halocast

namespace {

using namespace halocast;

constexpr int known_widths[] = {1, 2, 3, 4, 5, 6, 8, 16, 32};
constexpr std::uint8_t guard = 0xa5;

std::mt19937_64 generator;

std::int64_t between(std::int64_t low, std::int64_t high) {
  return std::uniform_int_distribution<std::int64_t>(low, high)(generator);
}

bool one_in(std::int64_t times) { return between(1, times) == 1; }

// Memory of its own that ends where its last element does: on the heap, for the sanitizer, or before a page that must not be
// touched, for the masked loads and stores of AVX-512, which no sanitizer looks at.
template <class T>
class Block {
 public:
  // offset: elements in front, so that the first may lie at any alignment.
  explicit Block(std::int64_t count, std::int64_t offset = 0) : count_(count) {
    const auto elements = static_cast<std::size_t>(count + offset);
    if (one_in(2)) {
      heap_.reset(new T[elements]());
      first_ = heap_.get() + offset;
    } else {
      const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
      mapped_bytes_ = (elements * sizeof(T) + page - 1) / page * page + page;
      mapped_ = mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (mapped_ == MAP_FAILED) std::abort();
      char* const end = static_cast<char*>(mapped_) + mapped_bytes_ - page;
      if (mprotect(end, page, PROT_NONE) != 0) std::abort();
      first_ = reinterpret_cast<T*>(end) - count;
    }
  }
  ~Block() {
    if (mapped_ != nullptr) munmap(mapped_, mapped_bytes_);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  T* get() const { return first_; }
  T& operator[](std::int64_t i) const { return first_[i]; }
  std::int64_t count() const { return count_; }
  void fill(const T& value) const { std::fill(first_, first_ + count_, value); }

 private:
  std::unique_ptr<T[]> heap_;
  void* mapped_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  T* first_;
  std::int64_t count_;
};

template <class T>
bool same_bytes(const Block<T>& a, const Block<T>& b) {
  return a.count() == 0 || std::memcmp(a.get(), b.get(), static_cast<std::size_t>(a.count()) * sizeof(T)) == 0;
}

// NaN counts as itself, whatever its sign and payload: which operand's an addition keeps is the processor's affair.
bool same_values(const Block<float>& a, const Block<float>& b) {
  for (std::int64_t i = 0; i < a.count(); ++i)
    if (codec::bits_of(a[i]) != codec::bits_of(b[i]) && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
  return true;
}

struct Variant {
  const char* name;
  const CodecTable* table;
};

std::vector<Variant> linked_variants() {
  std::vector<Variant> variants{{"portable", portable::codec_table()}};
  if (avx2::codec_table != nullptr) variants.push_back({"avx2", avx2::codec_table()});
  if (avx512::codec_table != nullptr) variants.push_back({"avx512", avx512::codec_table()});
  return variants;
}

enum class Kind { normal, constant, zeros, subnormal, huge, any_bits, kinds };

float random_value(Kind kind, bool one_sided) {
  const auto normal = static_cast<float>(std::normal_distribution<double>()(generator));
  float value = normal;
  if (kind == Kind::constant) value = 0.1f;
  if (kind == Kind::zeros) value = normal < 0 ? -0.0f : 0.0f;
  if (kind == Kind::subnormal) value = normal * 1e-42f;
  if (kind == Kind::huge) value = normal * 1e37f;
  if (kind == Kind::any_bits) value = codec::float_of(static_cast<std::uint32_t>(generator()));
  return one_sided && kind != Kind::any_bits && value < 0 ? 0.0f : value;
}

// A matrix of rows that may lie apart, the last one ending where the memory does.
struct Matrix {
  std::int64_t rows, dim, stride;
  Block<float> values;

  Matrix(std::int64_t rows_, std::int64_t dim_, std::int64_t stride_)
      : rows(rows_), dim(dim_), stride(stride_), values(rows == 0 ? 0 : (rows - 1) * stride + dim, between(0, 4)) {}
  float* row(std::int64_t i) const { return values.get() + i * stride; }
};

// Rows, the records they go to, and the agreed layout.
class Job {
 public:
  explicit Job(const std::vector<Variant>& variants)
      : variants_(variants),
        dim_(one_in(20) ? between(1000, 9000) : one_in(4) ? between(1, 12) : between(1, 300)),
        count_(between(0, dim_ > 300 ? 5 : 60)),
        one_sided_(one_in(2)),
        rounding_(static_cast<Rounding>(between(0, 2))),
        matrix_(count_ + between(0, 3), dim_, dim_ + (one_in(2) ? 0 : between(1, 5))),
        widths_(count_),
        offsets_(count_),
        nodes_(count_),
        index64_(count_),
        index32_(count_) {
    const int same_width = one_in(2) ? known_widths[between(0, 8)] : 0;
    for (std::int64_t row = 0; row < count_; ++row) {
      widths_[row] = static_cast<std::uint8_t>(same_width != 0 ? same_width : known_widths[between(0, 8)]);
      offsets_[row] = wire_bytes_;
      wire_bytes_ += record_bytes(row);
      // Messages of other peers have their headers between the records.
      if (one_in(8)) wire_bytes_ += codec::header_bytes;
      nodes_[row] = between(0, (std::int64_t{1} << 40) - 1);
      index64_[row] = count_ - 1 - row;
      index32_[row] = static_cast<std::int32_t>(count_ - 1 - row);
    }
    for (std::int64_t row = 0; row < matrix_.rows; ++row) {
      const auto kind = one_in(3) ? static_cast<Kind>(between(0, static_cast<int>(Kind::kinds) - 1)) : Kind::normal;
      // Bits drawn at random are often NaN, infinite or too large: few rows get them, so that most jobs can be sent.
      const bool wild = kind == Kind::any_bits && !one_in(8);
      for (std::int64_t j = 0; j < dim_; ++j) matrix_.row(row)[j] = random_value(wild ? Kind::normal : kind, one_sided_);
    }
    if (!one_in(3)) index_ = one_in(2) ? RowIndex{index32_.get(), nullptr} : RowIndex{nullptr, index64_.get()};
    const auto layer = static_cast<std::uint32_t>(between(0, 99));
    stream_ = {generator(), static_cast<std::uint32_t>(generator()), 1u << 28 | layer << 8};
    wire_shift_ = between(0, 7);
    with_ranges_ = one_in(2);
  }

  // What went wrong, or null.
  const char* run() {
    if (const char* wrong = check_packing()) return wrong;
    if (const char* wrong = check_unpacking(wire_bytes_, nullptr)) return wrong;
    if (first_bad_ < 0 && !restores_rows()) return "values came back too far from those that were sent";
    return check_random_bytes();
  }

 private:
  Records records() const {
    return {widths_.get(), offsets_.get(), count_, dim_, one_sided_, rounding_, stream_, nodes_.get()};
  }

  bool is_rotated(std::int64_t row) const {
    return rounding_ == Rounding::rotated && widths_[row] <= codec::rotated_width_limit;
  }

  std::int64_t record_bytes(std::int64_t row) const {
    return codec::record_bytes(widths_[row], dim_, one_sided_, rounding_ == Rounding::rotated);
  }

  std::int64_t matrix_row(std::int64_t k) const {
    return index_.index32 != nullptr ? index_.index32[k] : index_.index64 != nullptr ? index_.index64[k] : k;
  }

  bool is_sendable(std::int64_t k) const {
    if (widths_[k] == 32) return true;
    const std::uint32_t limit = is_rotated(k) ? codec::rotated_magnitude_limit : codec::magnitude_limit;
    const float* const row = matrix_.row(matrix_row(k));
    return std::all_of(row, row + dim_, [&](float x) {
      return (codec::bits_of(x) & 0x7fffffffu) < limit && !(one_sided_ && widths_[k] < 16 && x < 0);
    });
  }

  const char* check_packing() {
    first_bad_ = -1;
    for (std::int64_t k = count_; k-- > 0;)
      if (!is_sendable(k)) first_bad_ = k;
    std::unique_ptr<Block<float>> first_ranges;
    for (const Variant& variant : variants_) {
      auto wire = std::make_unique<Block<std::uint8_t>>(wire_bytes_, wire_shift_);
      auto ranges = std::make_unique<Block<float>>(count_);
      wire->fill(guard);
      const std::int64_t found = variant.table->pack(
          {records(), matrix_.values.get(), matrix_.stride, index_, wire->get(), wire_bytes_,
           with_ranges_ ? ranges->get() : nullptr},
          static_cast<int>(between(1, 3)));
      if (found != first_bad_) return "pack named the wrong row as the first that cannot be sent";
      if (const char* wrong = check_gaps(*wire)) return wrong;
      if (wire_ == nullptr) {
        wire_ = std::move(wire);
        first_ranges = std::move(ranges);
      } else if (first_bad_ < 0 && !(same_bytes(*wire, *wire_) && same_values(*ranges, *first_ranges))) {
        return "two instruction sets pack different bytes or ranges";
      }
    }
    return nullptr;
  }

  // Bytes between records belong to headers.
  const char* check_gaps(const Block<std::uint8_t>& wire) const {
    std::int64_t at = 0;
    for (std::int64_t row = 0; row <= count_; ++row) {
      const std::int64_t end = row < count_ ? offsets_[row] : wire_bytes_;
      for (; at < end; ++at)
        if (wire[at] != guard) return "pack wrote outside the records";
      if (row < count_) at += record_bytes(row);
    }
    return nullptr;
  }

  // Unpacks with all variants from a block of so many bytes. expected: the first row that lies outside, found otherwise
  // by trust in the agreed layout (null).
  const char* check_unpacking(std::int64_t bytes, const std::int64_t* expected) {
    Block<std::uint8_t> wire(bytes, wire_shift_);
    std::copy(wire_->get(), wire_->get() + bytes, wire.get());
    const bool accumulate = one_in(2);
    std::unique_ptr<Matrix> first;
    for (const Variant& variant : variants_) {
      auto out = std::make_unique<Matrix>(matrix_.rows, dim_, matrix_.stride);
      out->values.fill(0.0f);
      const std::int64_t found =
          variant.table->unpack({records(), wire.get(), bytes, out->values.get(), out->stride, index_, accumulate},
                                static_cast<int>(between(1, 3)));
      if (found != (expected != nullptr ? *expected : -1)) return "unpack named the wrong row as the first outside the wire";
      for (std::int64_t row = 0; row + 1 < out->rows; ++row)
        for (std::int64_t j = dim_; j < out->stride; ++j)
          if (out->row(row)[j] != 0.0f) return "unpack wrote between rows";
      if (first == nullptr)
        first = std::move(out);
      else if (!same_values(out->values, first->values))
        return "two instruction sets restore different values";
    }
    restored_ = std::move(first);
    return nullptr;
  }

  // Within one step of the row's grid, where there is one.
  bool restores_rows() const {
    for (std::int64_t k = 0; k < count_; ++k) {
      const float* const sent = matrix_.row(matrix_row(k));
      const float* const restored = restored_->row(matrix_row(k));
      const auto [low, high] = std::minmax_element(sent, sent + dim_);
      if (is_rotated(k)) continue;  // a rotation moves errors from one element to another
      double tolerance = 0;
      if (widths_[k] <= 8) {
        // The offset is rounded down to 8 bits, and the scale up to 9.
        const double offset = one_sided_ ? 0 : std::fabs(*low) / 128;
        const double span = (one_sided_ ? *high : static_cast<double>(*high) - *low) + offset;
        tolerance = 1.005 * span / ((1 << widths_[k]) - 1) + 1e-33;
      }
      for (std::int64_t j = 0; j < dim_; ++j) {
        if (widths_[k] == 16) tolerance = std::fabs(sent[j]) / 256 + 1e-40;
        // What was accumulated was added to 0, which turns -0 into 0.
        if (widths_[k] == 32 && codec::bits_of(sent[j]) != codec::bits_of(restored[j]) && sent[j] == sent[j] &&
            sent[j] != restored[j])
          return false;
        if (widths_[k] < 32 && !(std::fabs(static_cast<double>(sent[j]) - restored[j]) <= tolerance)) return false;
      }
    }
    return true;
  }

  // Whatever the bytes, widths and places of records are, an unpack stays within its buffers and names the first row that
  // does not lie in them.
  const char* check_random_bytes() {
    for (std::int64_t i = 0; i < wire_bytes_; ++i) (*wire_)[i] = static_cast<std::uint8_t>(generator());
    if (const char* wrong = check_unpacking(wire_bytes_, nullptr)) return wrong;
    for (std::int64_t row = 0; row < count_; ++row) {
      if (one_in(20)) widths_[row] = static_cast<std::uint8_t>(generator());
      if (one_in(20)) offsets_[row] = between(-10, wire_bytes_ + 10);
      if (one_in(40)) offsets_[row] = between(INT64_MIN, INT64_MAX);
      if (one_in(40)) offsets_[row] = one_in(2) ? INT64_MAX : INT64_MIN;
    }
    const std::int64_t bytes = one_in(2) ? wire_bytes_ : between(0, wire_bytes_);
    std::int64_t first_outside = -1;
    for (std::int64_t row = count_; row-- > 0;) {
      const bool known = std::find(std::begin(known_widths), std::end(known_widths), widths_[row]) != std::end(known_widths);
      if (!known || offsets_[row] < 0 || offsets_[row] > bytes || record_bytes(row) > bytes - offsets_[row])
        first_outside = row;
    }
    return check_unpacking(bytes, &first_outside);
  }

  const std::vector<Variant>& variants_;
  std::int64_t dim_;
  std::int64_t count_;
  bool one_sided_;
  Rounding rounding_;
  Matrix matrix_;
  Block<std::uint8_t> widths_;
  Block<std::int64_t> offsets_;
  Block<std::int64_t> nodes_;
  Block<std::int64_t> index64_;
  Block<std::int32_t> index32_;
  RowIndex index_{nullptr, nullptr};
  RandomStream stream_{};
  std::int64_t wire_bytes_ = codec::header_bytes;
  std::int64_t wire_shift_;
  bool with_ranges_;
  std::int64_t first_bad_ = -1;
  std::unique_ptr<Block<std::uint8_t>> wire_;
  std::unique_ptr<Matrix> restored_;
};

}  // namespace

int main(int argc, char** argv) {
  const auto jobs = static_cast<std::uint64_t>(argc > 1 ? std::atoll(argv[1]) : 1000);
  const auto seed = static_cast<std::uint64_t>(argc > 2 ? std::atoll(argv[2]) : 1);
  const std::vector<Variant> variants = linked_variants();
  for (std::uint64_t job = 0; job < jobs; ++job) {
    // Each job has a seed of its own, so that one can be repeated alone.
    generator.seed(seed + job);
    if (const char* wrong = Job(variants).run()) {
      std::fprintf(stderr, "job with seed %llu: %s\n", static_cast<unsigned long long>(seed + job), wrong);
      return 1;
    }
  }
  for (const Variant& variant : variants) std::printf("%s\n", variant.name);
  return 0;
}
