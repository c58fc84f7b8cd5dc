// Attention and extremes on a host, as emulate.cpp has the codec: each warp in turn, its lanes one after the other. For
// tests only.
//   g++ -std=c++17 -O1 -shared -fPIC -o emulate_attend.so emulate_attend.cpp
#include "attend_work.h"

namespace halocast::attention {
namespace {

template <class Job>
void emulate(const Job& job, int turn, int step) {
  start_all(job, [&](const auto& work) {
    for (std::int64_t number = 0; number < work.warps(); ++number) work(Warp(turn, step), number);
  });
}

// job: an address of Job<double> or Job<float>.
template <template <class> class Job>
void emulate_job(bool is_double, const void* job, int turn, int step) {
  if (is_double)
    emulate(*static_cast<const Job<double>*>(job), turn, step);
  else
    emulate(*static_cast<const Job<float>*>(job), turn, step);
}

}  // namespace
}  // namespace halocast::attention

using namespace halocast;

extern "C" void emulate_attend_forward(bool is_double, const void* job, int turn, int step) {
  attention::emulate_job<AttendForward>(is_double, job, turn, step);
}
extern "C" void emulate_attend_finish(bool is_double, const void* job, int turn, int step) {
  attention::emulate_job<AttendFinish>(is_double, job, turn, step);
}
extern "C" void emulate_attend_pack(bool is_double, const void* job, int turn, int step) {
  attention::emulate_job<AttendPack>(is_double, job, turn, step);
}
extern "C" void emulate_attend_backward(bool is_double, const void* job, int turn, int step) {
  attention::emulate_job<AttendBackward>(is_double, job, turn, step);
}
extern "C" void emulate_extreme_forward(bool is_double, const void* job, int turn, int step) {
  attention::emulate_job<ExtremeForward>(is_double, job, turn, step);
}
extern "C" void emulate_extreme_backward(bool is_double, const void* job, int turn, int step) {
  attention::emulate_job<ExtremeBackward>(is_double, job, turn, step);
}
