// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "../abi/kernel_info.h"

namespace hipdecode::runtime {

/// What an ELF artefact says about its kernel, read without loading it.
struct CodeObjectInfo {
  abi::KernelInfo kernel;           // the symbol `hipdecode_kernel_info`
  int64_t group_segment_bytes = 0;  // group memory that the code fixes; 0 where a cubin
  int64_t private_segment_bytes = 0;
};

/// @throws Error when the file cannot be read
std::string read_file(const std::string& path);

/// Reads a code object (gfx: with the descriptor `symbol`.kd) or a cubin.
/// @param path for messages
/// @throws Error when `elf` is no 64-bit ELF file, lacks the symbols or is of another ABI version
CodeObjectInfo read_code_object_info(std::string_view elf, const std::string& path,
                                     const std::string& symbol);

/// @throws Error when the artefact is of another ABI version
void check_abi_version(const abi::KernelInfo& info, const std::string& path);

}  // namespace hipdecode::runtime
