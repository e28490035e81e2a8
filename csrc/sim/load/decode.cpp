// SPDX-License-Identifier: MIT
#include "decode.h"

#include <llvm-c/Disassembler.h>
#include <llvm-c/Target.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "../isa/opcodes.h"

extern "C" {  // llvm-c/Target.h declares them only for the host's targets
void LLVMInitializeAMDGPUTargetInfo();
void LLVMInitializeAMDGPUTargetMC();
void LLVMInitializeAMDGPUDisassembler();
}

namespace hipdecode::sim {
namespace {

constexpr size_t kTextBytes = 512;
constexpr uint32_t kMaxEncodingBytes = 20;

struct Close {
  void operator()(void* context) const { LLVMDisasmDispose(context); }
};

std::unique_ptr<void, Close> disassembler(const Arch& arch) {
  static std::once_flag once;
  std::call_once(once, [] {
    LLVMInitializeAMDGPUTargetInfo();
    LLVMInitializeAMDGPUTargetMC();
    LLVMInitializeAMDGPUDisassembler();
  });
  const std::string cpu(arch.name);
  std::unique_ptr<void, Close> result(
      LLVMCreateDisasmCPU("amdgcn-amd-amdhsa", cpu.c_str(), nullptr, 0, nullptr, nullptr));
  if (!result)
    throw std::runtime_error("LLVM: expected a disassembler for " + cpu +
                             ", got none; install llvm-22-dev with the AMDGPU target");
  return result;
}

/// "v_add_f32_e64" is the opcode v_add_f32.
std::string_view base_name(std::string_view mnemonic) {
  for (const std::string_view suffix : {"_e64_dpp", "_dpp", "_sdwa", "_e32", "_e64"})
    if (mnemonic.ends_with(suffix)) return mnemonic.substr(0, mnemonic.size() - suffix.size());
  return mnemonic;
}

Instruction decode_one(LLVMDisasmContextRef with, std::span<const uint8_t> code, uint64_t address) {
  Instruction result;
  result.address = address;
  char text[kTextBytes];
  const size_t bytes = LLVMDisasmInstruction(with, const_cast<uint8_t*>(code.data()), code.size(),
                                             address, text, sizeof text);
  result.bytes = bytes == 0 ? 4 : static_cast<uint32_t>(bytes);
  if (bytes == 0) {
    result.text = "(no instruction)";
    return result;
  }
  const std::string_view all(text);
  result.text = all.substr(all.find_first_not_of("\t "));
  for (char& letter : result.text)
    if (letter == '\t') letter = ' ';
  const std::string_view mnemonic = std::string_view(result.text).substr(0, result.text.find(' '));
  result.opcode = find_opcode(base_name(mnemonic));
  uint32_t words[kMaxEncodingBytes / 4] = {};
  std::memcpy(words, code.data(), std::min(result.bytes, kMaxEncodingBytes));
  parse(result, words);
  if (result.modifiers.lds)  // a buffer load that goes to LDS is an opcode of its own here
    result.opcode = find_opcode(std::string(base_name(mnemonic)) + "_lds");
  return result;
}

/// Branch targets from 16-bit distances in words.
void link_branches(std::vector<Instruction>& instructions, uint64_t address, size_t code_bytes) {
  std::vector<int32_t> at(code_bytes / 4 + 1, -1);
  for (const Instruction& instruction : instructions)
    at[(instruction.address - address) / 4] = instruction.index;
  for (Instruction& instruction : instructions) {
    const std::string_view text(instruction.text);
    if (!text.starts_with("s_branch") && !text.starts_with("s_cbranch") &&
        !text.starts_with("s_call"))
      continue;
    const int64_t target = static_cast<int64_t>(instruction.address - address) / 4 + 1 +
                           static_cast<int16_t>(instruction.immediate);
    if (target >= 0 && target < static_cast<int64_t>(at.size()))
      instruction.branch_target = at[static_cast<size_t>(target)];
  }
}

}  // namespace

std::vector<Instruction> decode(std::span<const uint8_t> code, uint64_t address, const Arch& arch) {
  const auto with = disassembler(arch);
  std::vector<Instruction> result;
  result.reserve(code.size() / 6);
  const size_t whole = code.size() / 4 * 4;
  for (size_t at = 0; at < whole;) {
    result.push_back(decode_one(with.get(), code.subspan(at), address + at));
    result.back().index = static_cast<int32_t>(result.size()) - 1;
    at += result.back().bytes;
  }
  link_branches(result, address, whole);
  return result;
}

}  // namespace hipdecode::sim
