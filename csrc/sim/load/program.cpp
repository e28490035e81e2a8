// SPDX-License-Identifier: MIT
#include "program.h"

#include <algorithm>
#include <cstring>

#include "../state/wave.h"
#include "decode.h"

namespace hipdecode::sim {

Program::Program(const std::string& path, const std::string& arch)
    : object_(read_code_object(path, arch)) {
  for (const CodeObject::Relocation& relocation : object_.relocations) {
    const uint64_t value = base() + relocation.value;
    std::memcpy(object_.image.data() + relocation.offset, &value, sizeof value);
  }
  instructions_ = decode({object_.image.data() + object_.text_address, object_.text_bytes},
                         object_.text_address, *object_.arch);
  effects_ = effects_of(instructions_);
}

int64_t Program::find(uint64_t address) const {
  const uint64_t wanted = address - base();
  const auto found = std::lower_bound(
      instructions_.begin(), instructions_.end(), wanted,
      [](const Instruction& instruction, uint64_t at) { return instruction.address < at; });
  if (found == instructions_.end() || found->address != wanted)
    throw Fault("branch: expected the address of an instruction, got " + std::to_string(wanted) +
                " bytes into the code object");
  return found - instructions_.begin();
}

std::string Program::encoding(const Instruction& instruction) const {
  std::string result;
  for (uint32_t i = 0; i + 4 <= instruction.bytes; i += 4) {
    uint32_t word;
    std::memcpy(&word, object_.image.data() + instruction.address + i, sizeof word);
    char text[16];
    std::snprintf(text, sizeof text, "%s%08X", i == 0 ? "" : " ", word);
    result += text;
  }
  return result;
}

}  // namespace hipdecode::sim
