#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace halocast {
namespace {

struct Isa {
  const char* name;
  const KernelTable* table;
  const CodecTable* codec;
};

// __builtin_cpu_supports asks cpuid and, for the wide registers, whether the operating system saves them (xgetbv).
std::vector<Isa> runnable() {
  std::vector<Isa> isas{{"portable", portable::table(), portable::codec_table()}};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) {
    isas.push_back({"avx2", avx2::table(), avx2::codec_table()});
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
      isas.push_back({"avx512", avx512::table(), avx512::codec_table()});
  }
#endif
  return isas;
}

std::atomic<const KernelTable*> current{nullptr};
std::atomic<const CodecTable*> current_codec{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : runnable()) names.emplace_back(isa.name);
  return names;
}

std::string current_isa() {
  for (const Isa& isa : runnable())
    if (isa.table == current) return isa.name;
  return "portable";
}

void set_isa(const std::string& name) {
  std::string allowed;
  for (const Isa& isa : runnable()) {
    if (name == isa.name) {
      current = isa.table;
      current_codec = isa.codec;
      return;
    }
    allowed += std::string(allowed.empty() ? "" : ", ") + isa.name;
  }
  throw std::invalid_argument("instruction set '" + name +
                              "' (HALOCAST_ISA) is unknown or cannot run here; allowed: " + allowed);
}

void set_default_isa() {
  const char* forced = std::getenv("HALOCAST_ISA");
  set_isa(forced != nullptr && *forced != '\0' ? std::string(forced) : available_isas().back());
}

const KernelTable& kernels() { return *current.load(std::memory_order_relaxed); }

const CodecTable& codec_kernels() { return *current_codec.load(std::memory_order_relaxed); }

}  // namespace halocast
