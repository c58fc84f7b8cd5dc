// The instruction sets the kernels were compiled for, and the one in use.
#pragma once

#include <string>
#include <vector>

#include "codec.h"
#include "kernels.h"

namespace halocast {

// Those that the processor and the operating system can run, slowest first.
std::vector<std::string> available_isas();

std::string current_isa();

// Throws std::invalid_argument, naming what is allowed, for one that is unknown or cannot run here.
void set_isa(const std::string& name);

// Takes the variable HALOCAST_ISA, or else the fastest.
void set_default_isa();

const KernelTable& kernels();

const CodecTable& codec_kernels();

}  // namespace halocast
