#include "launch_work.h"

namespace halocast::attention {

template void launch(const ExtremeForward<float>&, std::uintptr_t);
template void launch(const ExtremeForward<double>&, std::uintptr_t);
template void launch(const ExtremeBackward<float>&, std::uintptr_t);
template void launch(const ExtremeBackward<double>&, std::uintptr_t);

}  // namespace halocast::attention
