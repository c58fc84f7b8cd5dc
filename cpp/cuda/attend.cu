#include "launch_work.h"

namespace halocast::attention {

template void launch(const AttendForward<float>&, std::uintptr_t);
template void launch(const AttendForward<double>&, std::uintptr_t);
template void launch(const AttendFinish<float>&, std::uintptr_t);
template void launch(const AttendFinish<double>&, std::uintptr_t);
template void launch(const AttendPack<float>&, std::uintptr_t);
template void launch(const AttendPack<double>&, std::uintptr_t);

}  // namespace halocast::attention
