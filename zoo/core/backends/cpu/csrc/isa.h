// Included by the kernels.cpp of each family, which CMakeLists.txt compiles once for each instruction set, with its flags and its
// ZOO_ISA. FAMILY_TABLE(gemm) is the name of the family's table for that instruction set, as dispatch.cpp knows it.
#pragma once
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(ZOO_NEON)
#include <arm_neon.h>
#endif
#define JOIN_OF(a, b) a##_##b
#define JOIN(a, b) JOIN_OF(a, b)
#define FAMILY_TABLE(family) JOIN(family, ZOO_ISA)
