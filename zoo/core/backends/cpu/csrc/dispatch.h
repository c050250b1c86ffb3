#pragma once
#include <string>
#include <vector>

#include "kernels.h"

namespace zoo {

std::vector<std::string> isas();      // that kernels exist for, and this machine runs; the best one last
std::vector<std::string> features();  // of the processor, whether kernels use them or not
void set_isa(const std::string& name);

}  // namespace zoo
