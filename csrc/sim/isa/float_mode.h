// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>

#if __has_include(<xmmintrin.h>)  // x86-64
#include <xmmintrin.h>
#endif

#include "../state/wave.h"

namespace hipdecode::sim {

/// Gives the host's arithmetic the rounding and denormal handling of a MODE register while it
/// lives. Kernels run in the default, round to nearest and keep denormals, for which this costs one
/// comparison.
class FloatMode {
 public:
  enum Width : uint8_t { single, wide };  // which fields: fp32, or fp64 and fp16

  FloatMode(uint32_t mode, Width width) {
    const uint32_t shift = width == wide ? 2 : 0;
    const uint32_t rounding = mode >> shift & 3, denormals = mode >> (4 + shift) & 3;
    if (rounding == 0 && denormals == 3) [[likely]]
      return;
    enter(rounding, denormals);
  }
  ~FloatMode() {
    if (changed_) [[unlikely]]
      leave();
  }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if __has_include(<xmmintrin.h>)  // x86-64
  void enter(uint32_t rounding, uint32_t denormals) {
    constexpr uint32_t kRounding[] = {0, 2, 1, 3};  // MXCSR has up and down the other way round
    constexpr uint32_t kInputsAreZero = 1u << 6, kFlush = 1u << 15;
    saved_ = _mm_getcsr();
    uint32_t control = saved_ & ~(3u << 13 | kInputsAreZero | kFlush);
    control |= kRounding[rounding] << 13;
    if ((denormals & 1) == 0) control |= kInputsAreZero;
    if ((denormals & 2) == 0) control |= kFlush;
    _mm_setcsr(control);
    changed_ = true;
  }
  void leave() { _mm_setcsr(saved_); }
#else
  void enter(uint32_t, uint32_t) {
    throw Fault(
        "MODE: expected round to nearest with denormals, got another mode; this host's "
        "processor cannot model it");
  }
  void leave() {}
#endif

  bool changed_ = false;
  uint32_t saved_ = 0;
};

/// The denormal handling of fp16, whose arithmetic is not the host's.
class HalfMode {
 public:
  explicit HalfMode(uint32_t mode)
      : input_(mode >> 6 & 1 ? 0 : 0x7fff), output_(mode >> 7 & 1 ? 0 : 0x7fff) {}

  uint32_t input(uint32_t bits) const { return flush(bits, input_); }
  uint32_t output(uint32_t bits) const { return flush(bits, output_); }

 private:
  static uint32_t flush(uint32_t bits, uint32_t mask) {
    return (bits & 0x7c00) == 0 ? bits & ~mask : bits;
  }
  uint32_t input_, output_;  // bits that a denormal loses
};

/// fp32 bits with denormals replaced by zeros of their sign.
inline uint32_t flush_single(uint32_t bits) {
  return (bits & 0x7f800000) == 0 ? bits & 0x80000000 : bits;
}

}  // namespace hipdecode::sim
