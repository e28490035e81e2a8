// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string_view>

namespace hipdecode::sim {

enum class ArchId : uint8_t { gfx942, gfx950 };

/// What differs between the architectures that are simulated.
struct Arch {
  ArchId id;
  std::string_view name;
  uint32_t elf_mach;  // EF_AMDGPU_MACH, the low byte of e_flags
  int64_t lds_bytes;  // of a workgroup, at most
  int32_t lds_banks;  // of 4 bytes
  bool fnuz;          // plain FP8 is e4m3fnuz/e5m2fnuz rather than OCP e4m3fn/e5m2

  bool gfx950() const { return id == ArchId::gfx950; }
};

inline constexpr Arch kArchs[] = {
    {ArchId::gfx942, "gfx942", 0x4c, 64 * 1024, 32, true},
    {ArchId::gfx950, "gfx950", 0x4f, 160 * 1024, 64, false},
};

}  // namespace hipdecode::sim
