// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "../check/effects.h"
#include "code_object.h"
#include "instruction.h"

namespace hipdecode::sim {

/// A code object, loaded and decoded once; launches share it.
class Program {
 public:
  /// @param arch  "gfx942", "gfx950", or "" for what the ELF says
  Program(const std::string& path, const std::string& arch);

  const CodeObject& object() const { return object_; }
  const Arch& arch() const { return *object_.arch; }
  std::span<const Instruction> instructions() const { return instructions_; }
  std::span<const Effects> effects() const { return effects_; }
  /// Where the image lies in this process; addresses of the ELF count from here.
  uint64_t base() const { return reinterpret_cast<uint64_t>(object_.image.data()); }
  /// Index of the instruction at an absolute address. Throws Fault where none starts there.
  int64_t find(uint64_t address) const;
  /// The encoding, as "7E0002FF 3F800001".
  std::string encoding(const Instruction& instruction) const;

 private:
  CodeObject object_;
  std::vector<Instruction> instructions_;
  std::vector<Effects> effects_;
};

}  // namespace hipdecode::sim
