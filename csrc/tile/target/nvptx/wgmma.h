// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#include "../../../abi/dtype.h"
#include "entry.h"

// Products of a warpgroup, four waves: D[64, N] += A[64, 16] x B[16, N] in fp32. A is in registers,
// 16 rows a wave; B is in shared memory (PTX ISA 8.0, section 9.7.14).
namespace hipdecode::tile::nvptx {

/// How the matrix unit finds B: core matrices of 8 columns of D by 8 of the depth, 128 bytes each;
/// neighbours along the columns follow one another, those along the depth are `stride` apart.
TILE_FN uint64_t operand(uint32_t address, int stride) {
  constexpr uint64_t kCoreBytes = 128;
  // shuffled here, so that offsets are added in uniform registers instead of kept in local memory
  const uint32_t place = __shfl_sync(~0u, (address & 0x3ffff) >> 4, 0);
  return uint64_t{place} | static_cast<uint64_t>(stride >> 4) << 16 | (kCoreBytes >> 4) << 32;
}

/// The operand `bytes` further on.
TILE_FN uint64_t advanced(uint64_t operand, int bytes) {
  return operand + static_cast<uint64_t>(bytes >> 4);
}

TILE_FN void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TILE_FN void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits until at most kLater groups of products are under way.
template <int kLater>
TILE_FN void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLater) : "memory");
}

#define HIPDECODE_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define HIPDECODE_F8(d, i) HIPDECODE_F4(d, i), HIPDECODE_F4(d, i + 4)
#define HIPDECODE_F16(d, i) HIPDECODE_F8(d, i), HIPDECODE_F8(d, i + 8)
#define HIPDECODE_MULTIPLY(shape, type, d_list, a0, a1, a2, a3, b_at, p_at, ...)          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " p_at                                   \
               ", 0;\n"                                                                   \
               "wgmma.mma_async.sync.aligned." shape "k16.f32." type "." type " {" d_list \
               "}, {" a0 ", " a1 ", " a2 ", " a3 "}, " b_at ", p, 1, 1, 0;\n}"            \
               : __VA_ARGS__                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))
#define HIPDECODE_D8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define HIPDECODE_D16 HIPDECODE_D8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define HIPDECODE_D32                                                      \
  HIPDECODE_D16                                                            \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29" \
  ", %30, %31"
#define HIPDECODE_N16(type)                                                                \
  HIPDECODE_MULTIPLY("m64n16", type, HIPDECODE_D8, "%8", "%9", "%10", "%11", "%12", "%13", \
                     HIPDECODE_F8(d, 0))
#define HIPDECODE_N32(type)                                                                   \
  HIPDECODE_MULTIPLY("m64n32", type, HIPDECODE_D16, "%16", "%17", "%18", "%19", "%20", "%21", \
                     HIPDECODE_F16(d, 0))
#define HIPDECODE_N64(type)                                                                   \
  HIPDECODE_MULTIPLY("m64n64", type, HIPDECODE_D32, "%32", "%33", "%34", "%35", "%36", "%37", \
                     HIPDECODE_F16(d, 0), HIPDECODE_F16(d, 16))

/// d = a x b, or d += where `add`. Lane 4g + t holds columns 8j + 2t and + 1 of D's rows g (d[4j],
/// d[4j + 1]) and g + 8 (d[4j + 2], d[4j + 3]); of A, depths 2t and + 1 of rows g and g + 8 (a[0],
/// a[1]), then depths 8 more (a[2], a[3]). It runs on until wait_for_products().
template <abi::DType kType, int kWords>
TILE_FN void multiply(float (&d)[kWords], const uint32_t* a, uint64_t b, int add) {
  constexpr bool kBf16 = kType == abi::DType::bf16;
  if constexpr (kWords == 8 && kBf16) {
    HIPDECODE_N16("bf16");
  } else if constexpr (kWords == 8) {
    HIPDECODE_N16("f16");
  } else if constexpr (kWords == 16 && kBf16) {
    HIPDECODE_N32("bf16");
  } else if constexpr (kWords == 16) {
    HIPDECODE_N32("f16");
  } else if constexpr (kBf16) {
    HIPDECODE_N64("bf16");
  } else {
    HIPDECODE_N64("f16");
  }
}

#define HIPDECODE_D64                                                                       \
  HIPDECODE_D32                                                                             \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, " \
  "%49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define HIPDECODE_D128                                                                       \
  HIPDECODE_D64                                                                              \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, "  \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "    \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define HIPDECODE_F64(d, i) \
  HIPDECODE_F16(d, i), HIPDECODE_F16(d, i + 16), HIPDECODE_F16(d, i + 32), HIPDECODE_F16(d, i + 48)
#define HIPDECODE_SCORES(type)                                                       \
  asm volatile(                                                                      \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"                                   \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " {" HIPDECODE_D32 \
      "}, %32, %33, p, 1, 1, 0, 0;\n}"                                               \
      : HIPDECODE_F16(d, 0), HIPDECODE_F16(d, 16)                                    \
      : "l"(a), "l"(b), "r"(add))
#define HIPDECODE_VALUES(shape, type, d_list, a_at, b_at, last, ...)                        \
  asm volatile(                                                                             \
      "{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n"                                            \
      "wgmma.mma_async.sync.aligned." shape "k16.f32." type "." type " {" d_list "}, " a_at \
      ", " b_at ", p, 1, 1, " last ";\n}"                                                   \
      : __VA_ARGS__)
/// d = a x b, or d += where `add`: 64 rows by 64 columns, depths along the columns of both blocks.
template <abi::DType kType>
TILE_FN void multiply(float (&d)[32], uint64_t a, uint64_t b, int add) {
  if constexpr (kType == abi::DType::bf16) {
    HIPDECODE_SCORES("bf16");
  } else {
    HIPDECODE_SCORES("f16");
  }
}

#define HIPDECODE_N256(type, a_at, b_at, last, ...)                                        \
  HIPDECODE_VALUES("m64n256", type, HIPDECODE_D128, a_at, b_at, last, HIPDECODE_F64(d, 0), \
                   HIPDECODE_F64(d, 64) : __VA_ARGS__, "l"(b))
#define HIPDECODE_N128(type, a_at, b_at, last, ...)                  \
  HIPDECODE_VALUES("m64n128", type, HIPDECODE_D64, a_at, b_at, last, \
                   HIPDECODE_F64(d, 0) : __VA_ARGS__, "l"(b))

/// d += a x b: 64 rows by 256 or 128 columns, depths along b's rows; a in registers.
template <abi::DType kType>
TILE_FN void add_product(float (&d)[128], const uint32_t* a, uint64_t b) {
  if constexpr (kType == abi::DType::bf16) {
    HIPDECODE_N256("bf16", "{%128, %129, %130, %131}", "%132", "1", "r"(a[0]), "r"(a[1]), "r"(a[2]),
                   "r"(a[3]));
  } else {
    HIPDECODE_N256("f16", "{%128, %129, %130, %131}", "%132", "1", "r"(a[0]), "r"(a[1]), "r"(a[2]),
                   "r"(a[3]));
  }
}
template <abi::DType kType>
TILE_FN void add_product(float (&d)[64], const uint32_t* a, uint64_t b) {
  static_assert(kType == abi::DType::bf16);
  HIPDECODE_N128("bf16", "{%64, %65, %66, %67}", "%68", "1", "r"(a[0]), "r"(a[1]), "r"(a[2]),
                 "r"(a[3]));
}

/// The same of an a in a block.
template <abi::DType kType>
TILE_FN void add_product(float (&d)[128], uint64_t a, uint64_t b) {
  if constexpr (kType == abi::DType::bf16) {
    HIPDECODE_N256("bf16", "%128", "%129", "0, 1", "l"(a));
  } else {
    HIPDECODE_N256("f16", "%128", "%129", "0, 1", "l"(a));
  }
}
template <abi::DType kType>
TILE_FN void add_product(float (&d)[64], uint64_t a, uint64_t b) {
  static_assert(kType == abi::DType::bf16);
  HIPDECODE_N128("bf16", "%64", "%65", "0, 1", "l"(a));
}

#undef HIPDECODE_N128
#undef HIPDECODE_N256
#undef HIPDECODE_VALUES
#undef HIPDECODE_SCORES
#undef HIPDECODE_F64
#undef HIPDECODE_D128
#undef HIPDECODE_D64
#undef HIPDECODE_N64
#undef HIPDECODE_N32
#undef HIPDECODE_N16
#undef HIPDECODE_D32
#undef HIPDECODE_D16
#undef HIPDECODE_D8
#undef HIPDECODE_MULTIPLY
#undef HIPDECODE_F16
#undef HIPDECODE_F8
#undef HIPDECODE_F4

}  // namespace hipdecode::tile::nvptx
