#include "launch_work.h"

namespace halocast::attention {

template void launch(const AttendBackward<float>&, std::uintptr_t);
template void launch(const AttendBackward<double>&, std::uintptr_t);

}  // namespace halocast::attention
