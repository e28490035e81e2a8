// SPDX-License-Identifier: MIT
// Which operands of the text are destinations, and the fields that are read from the encoding.
#include <algorithm>
#include <array>
#include <iterator>
#include <stdexcept>

#include "decode.h"

namespace hipdecode::sim {
namespace {

constexpr uint32_t kDppSource = 0xfa, kSdwaSource = 0xf9;
constexpr int kMaxSources = 5;

uint32_t field(uint32_t word, int first, int bits) { return word >> first & ((1u << bits) - 1); }

template <size_t N>
bool starts_with_any(std::string_view text, const std::string_view (&prefixes)[N]) {
  return std::any_of(std::begin(prefixes), std::end(prefixes),
                     [&](std::string_view prefix) { return text.starts_with(prefix); });
}

bool is_swap(std::string_view mnemonic) {
  return mnemonic.starts_with("v_swap") || mnemonic.find("_swap_b32") != mnemonic.npos;
}

int scalar_destinations(std::string_view mnemonic) {
  constexpr std::string_view kNone[] = {
      "s_cmp",     "s_bitcmp",  "s_branch", "s_cbranch", "s_nop",          "s_set",     "s_endpgm",
      "s_sleep",   "s_send",    "s_trap",   "s_icache",  "s_dcache",       "s_barrier", "s_wakeup",
      "s_incperf", "s_decperf", "s_ttrace", "s_store",   "s_buffer_store", "s_rfe"};
  return starts_with_any(mnemonic, kNone) ? 0 : 1;
}

int vector_destinations(std::string_view mnemonic) {
  constexpr std::string_view kTwo[] = {"v_add_co_u32",  "v_sub_co_u32",  "v_subrev_co_u32",
                                       "v_addc_co_u32", "v_subb_co_u32", "v_subbrev_co_u32",
                                       "v_div_scale_f", "v_mad_u64_u32", "v_mad_i64_i32"};
  if (mnemonic.starts_with("v_nop") || mnemonic.starts_with("v_clrexcp")) return 0;
  return starts_with_any(mnemonic, kTwo) ? 2 : 1;
}

int lds_destinations(std::string_view mnemonic) {
  constexpr std::string_view kOne[] = {"ds_read",    "ds_bpermute", "ds_permute", "ds_swizzle",
                                       "ds_consume", "ds_append",   "ds_ordered"};
  return starts_with_any(mnemonic, kOne) || mnemonic.find("_rtn_") != mnemonic.npos ? 1 : 0;
}

int memory_destinations(std::string_view mnemonic, const Modifiers& modifiers) {
  if (mnemonic.find("_load_lds") != mnemonic.npos || modifiers.lds) return 0;
  if (mnemonic.find("_load_") != mnemonic.npos) return 1;
  return mnemonic.find("_atomic_") != mnemonic.npos && modifiers.sc0 ? 1 : 0;
}

int destinations(std::string_view mnemonic, const Modifiers& modifiers) {
  if (mnemonic.starts_with("s_")) return scalar_destinations(mnemonic);
  if (mnemonic.starts_with("v_")) return vector_destinations(mnemonic);
  if (mnemonic.starts_with("ds_")) return lds_destinations(mnemonic);
  return memory_destinations(mnemonic, modifiers);
}

/// Instructions that add to their destination, which the text names once.
bool accumulates(std::string_view mnemonic) {
  constexpr std::string_view kPrefixes[] = {"v_fmac_",  "v_mac_",   "v_pk_fmac_", "v_dot2c_",
                                            "v_dot4c_", "v_dot8c_", "v_smfmac_"};
  return starts_with_any(mnemonic, kPrefixes);
}

void read_dpp(Modifiers& m, uint32_t word) {
  m.dpp = true;
  m.dpp_ctrl = static_cast<uint16_t>(field(word, 8, 9));
  m.bound_ctrl = field(word, 19, 1);
  m.bank_mask = static_cast<uint8_t>(field(word, 24, 4));
  m.row_mask = static_cast<uint8_t>(field(word, 28, 4));
}

bool is_compare(std::string_view mnemonic) { return mnemonic.starts_with("v_cmp"); }

void read_sdwa(Modifiers& m, std::string_view mnemonic, uint32_t word) {
  m.sdwa = true;
  if (is_compare(mnemonic)) return;  // its destination is a mask
  m.sdwa_dst_select = static_cast<uint8_t>(field(word, 8, 3));
  m.sdwa_dst_unused = static_cast<uint8_t>(field(word, 11, 2));
}

void append(Instruction& instruction, const Operand& operand) {
  if (instruction.sources == kMaxSources)
    throw std::runtime_error("disassembly: expected at most 5 sources, got more in `" +
                             instruction.text + "`; widen Instruction::source");
  instruction.source[instruction.sources++] = operand;
}

}  // namespace

void read_encoding(Instruction& instruction, std::string_view mnemonic,
                   std::span<const uint32_t> encoding) {
  Modifiers& m = instruction.modifiers;
  if (mnemonic.starts_with("s_")) {
    const bool compare = encoding[0] >> 23 == 0x17e;  // SOPC: s_set_gpr_idx_on keeps 8 bits there
    instruction.immediate = compare ? static_cast<int32_t>(field(encoding[0], 8, 8))
                                    : static_cast<int16_t>(encoding[0] & 0xffff);
  }
  if (mnemonic == "s_waitcnt") {
    const uint32_t memory = field(encoding[0], 0, 4) | field(encoding[0], 14, 2) << 4;
    const uint32_t exports = field(encoding[0], 4, 3), lds = field(encoding[0], 8, 4);
    m.vmcnt = memory == 63 ? int8_t{-1} : static_cast<int8_t>(memory);
    m.expcnt = exports == 7 ? int8_t{-1} : static_cast<int8_t>(exports);
    m.lgkmcnt = lds == 15 ? int8_t{-1} : static_cast<int8_t>(lds);
  }
  if (mnemonic == "ds_swizzle_b32") m.offset = static_cast<int32_t>(encoding[0] & 0xffff);
  if (mnemonic.ends_with("_dpp") && field(encoding[0], 0, 9) == kDppSource)
    read_dpp(m, encoding[1]);
  if (mnemonic.ends_with("_sdwa") && field(encoding[0], 0, 9) == kSdwaSource)
    read_sdwa(m, mnemonic, encoding[1]);
}

void assign(Instruction& instruction, std::string_view mnemonic, std::span<const Operand> operands,
            std::span<const uint32_t> encoding) {
  const auto count = std::min<size_t>(
      static_cast<size_t>(destinations(mnemonic, instruction.modifiers)), operands.size());
  std::copy_n(operands.begin(), count, instruction.destination);
  for (const Operand& operand : operands.subspan(count)) append(instruction, operand);
  if (is_swap(mnemonic) && instruction.sources == 1) {
    instruction.destination[1] = instruction.source[0];
    instruction.source[0] = instruction.destination[0];
    append(instruction, instruction.destination[1]);
  }
  if (accumulates(mnemonic)) append(instruction, instruction.destination[0]);
  if (mnemonic.starts_with("buffer_atomic") && count == 1) {
    const auto old = std::to_array(instruction.source);
    std::copy_n(old.begin(), instruction.sources, instruction.source + 1);
    instruction.source[0] = instruction.destination[0];
    ++instruction.sources;
  }
  if (instruction.modifiers.sdwa) {
    instruction.source[0].sdwa_select = static_cast<uint8_t>(field(encoding[1], 16, 3));
    if (instruction.sources > 1)
      instruction.source[1].sdwa_select = static_cast<uint8_t>(field(encoding[1], 24, 3));
  }
}

}  // namespace hipdecode::sim
