// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../state/arch.h"
#include "metadata.h"

namespace hipdecode::sim {

/// The 64 bytes of `<kernel>.kd`, unpacked (LLVM's AMDGPUUsage, "Kernel Descriptor").
struct KernelDescriptor {
  uint32_t lds_bytes = 0, scratch_bytes = 0, kernarg_bytes = 0;
  int64_t entry = 0;  // address in the image
  uint32_t rsrc1 = 0, rsrc2 = 0, rsrc3 = 0;
  uint16_t properties = 0;

  int vector_registers() const { return static_cast<int>(((rsrc1 & 63) + 1) * 8); }
  int accumulator_offset() const { return static_cast<int>(((rsrc3 & 63) + 1) * 4); }
  int user_scalars() const { return static_cast<int>(rsrc2 >> 1 & 31); }
  bool has(int property) const { return properties >> property & 1; }
};

// Bits of KernelDescriptor::properties: user SGPRs that the kernel asks for, in this order.
inline constexpr int kPrivateSegmentBuffer = 0, kDispatchPtr = 1, kQueuePtr = 2,
                     kKernargSegmentPtr = 3, kDispatchId = 4, kFlatScratchInit = 5,
                     kPrivateSegmentSize = 6;

/// A kernel of a code object.
struct Kernel {
  std::string name;
  KernelDescriptor descriptor;
  KernelMetadata metadata;

  /// Bytes of the kernarg segment: hand-written objects leave the descriptor's at 0.
  int64_t kernarg_bytes() const;
  int64_t lds_bytes() const;
  int64_t scratch_bytes() const;
};

/// A linked AMDGPU ELF, its segments as the loader would place them.
struct CodeObject {
  const Arch* arch = nullptr;
  std::vector<uint8_t> image;  // by virtual address
  struct Relocation {
    uint64_t offset, value;  // image[offset] = where the image lies + value, 8 bytes
  };
  std::vector<Relocation> relocations;
  uint64_t text_address = 0, text_bytes = 0;
  std::vector<Kernel> kernels;

  /// Throws std::runtime_error where the kernel does not exist, naming those that do.
  const Kernel& kernel(const std::string& symbol) const;
};

/// Reads a file. `arch`: "gfx942", "gfx950", or "" for what the ELF says.
/// Throws std::runtime_error for anything but a linked code object of that architecture.
CodeObject read_code_object(const std::string& path, const std::string& arch);

}  // namespace hipdecode::sim
