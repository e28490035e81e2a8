// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

namespace hipdecode::sim {

/// One argument of a kernel as the NT_AMDGPU_METADATA note describes it.
struct ArgumentMetadata {
  std::string name, kind;  // kind: by_value, global_buffer, hidden_block_count_x, ...
  int64_t offset = 0, size = 0;
};

/// What the note says about a kernel.
struct KernelMetadata {
  std::string name, symbol;
  std::map<std::string, int64_t> numbers;  // ".vgpr_count" and its like
  std::vector<ArgumentMetadata> arguments;

  /// -1 where the note does not have it.
  int64_t number(const std::string& key) const {
    const auto found = numbers.find(key);
    return found == numbers.end() ? -1 : found->second;
  }
};

/// Reads the msgpack text of the note. Throws std::runtime_error where it is not well formed.
std::vector<KernelMetadata> read_metadata(std::span<const uint8_t> note);

}  // namespace hipdecode::sim
