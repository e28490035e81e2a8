// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

namespace hipdecode::abi {

/// Element types that cross the boundary. e4m3fn is OCP (gfx950), e4m3fnuz is gfx942's: the same
/// byte means twice the value in the first.
enum class DType : int32_t { bf16 = 0, fp16 = 1, fp8_e4m3fn = 2, fp8_e4m3fnuz = 3, fp32 = 4 };

constexpr int64_t element_bytes(DType type) {
  switch (type) {
    case DType::bf16:
    case DType::fp16:
      return 2;
    case DType::fp32:
      return 4;
    default:
      return 1;
  }
}

}  // namespace hipdecode::abi
