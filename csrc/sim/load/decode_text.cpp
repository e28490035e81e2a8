// SPDX-License-Identifier: MIT
// From LLVM's text to operands and modifiers. What the text spells in several ways (DPP controls,
// SDWA selectors, waits, swizzles) is read from the encoding instead.
#include <bit>
#include <charconv>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "decode.h"

namespace hipdecode::sim {
namespace {

[[noreturn]] void fail(const Instruction& instruction, std::string_view token) {
  throw std::runtime_error("disassembly: expected operands and modifiers of gfx9, got `" +
                           std::string(token) + "` in `" + instruction.text +
                           "`; teach decode_text.cpp to read it");
}

bool consume(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

/// Consumes `open` in front together with `close` at the end.
bool unwrap(std::string_view& text, std::string_view open, std::string_view close) {
  if (!text.starts_with(open) || !text.ends_with(close)) return false;
  text.remove_prefix(open.size());
  text.remove_suffix(close.size());
  return true;
}

std::optional<int64_t> integer(std::string_view text) {
  const bool negative = consume(text, "-");
  const int base = consume(text, "0x") ? 16 : 10;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || error != std::errc() || end != text.data() + text.size()) return {};
  return negative ? -static_cast<int64_t>(value) : static_cast<int64_t>(value);
}

/// What constants are widened to, by the last type of the mnemonic.
enum class Wide : uint8_t { no, bits, integer, floating };

Wide wide(std::string_view mnemonic) {
  for (const std::string_view suffix : {"_e64_dpp", "_dpp", "_sdwa", "_e32", "_e64"})
    if (mnemonic.ends_with(suffix)) mnemonic.remove_suffix(suffix.size());
  if (mnemonic.ends_with("_f64")) return Wide::floating;
  if (mnemonic.ends_with("_i64")) return Wide::integer;
  return mnemonic.ends_with("_b64") || mnemonic.ends_with("_u64") ? Wide::bits : Wide::no;
}

bool constant(Operand& result, std::string_view text, Wide type) {
  const bool literal = unwrap(text, "lit(", ")") || unwrap(text, "lit64(", ")");
  result.where = Where::constant;
  if (const auto value = integer(text)) {
    result.bits = static_cast<uint64_t>(*value);
    if (!literal && !text.starts_with("0x")) return true;  // inline, -16 to 64
    if (type == Wide::floating && result.bits >> 32 == 0) result.bits <<= 32;
    if (type == Wide::integer)
      result.bits = static_cast<uint64_t>(int64_t{static_cast<int32_t>(result.bits)});
    return true;
  }
  const std::string copy(text);
  char* end = nullptr;
  const double value = std::strtod(copy.c_str(), &end);
  if (copy.empty() || *end != 0) return false;
  const bool inverse_two_pi = copy.starts_with("0.15915");  // more digits than are printed
  result.float_constant = true;
  if (type != Wide::no)
    result.bits = inverse_two_pi ? 0x3fc45f306dc9c882 : std::bit_cast<uint64_t>(value);
  else
    result.bits = inverse_two_pi ? 0x3e22f983 : std::bit_cast<uint32_t>(static_cast<float>(value));
  return true;
}

/// "12", "[12:15]": the numbers after v, a, s, ttmp.
bool register_range(Operand& result, std::string_view text) {
  if (!unwrap(text, "[", "]")) {
    const auto number = integer(text);
    if (number) result.first = static_cast<uint16_t>(*number);
    return number.has_value();
  }
  const size_t colon = text.find(':');
  const auto first = integer(text.substr(0, colon));
  const auto last = colon == text.npos ? first : integer(text.substr(colon + 1));
  if (!first || !last || *last < *first) return false;
  result.first = static_cast<uint16_t>(*first);
  result.count = static_cast<uint16_t>(*last - *first + 1);
  return true;
}

bool named_scalar(Operand& result, std::string_view text, Wide type) {
  struct Name {
    std::string_view name;
    uint16_t number, count;
  };
  const uint16_t pair = type == Wide::no ? 1 : 2;
  const Name names[] = {{"vcc", kVcc, 2},
                        {"vcc_lo", kVcc, 1},
                        {"vcc_hi", kVcc + 1, 1},
                        {"exec", kExec, 2},
                        {"exec_lo", kExec, 1},
                        {"exec_hi", kExec + 1, 1},
                        {"m0", kM0, 1},
                        {"flat_scratch", kFlatScratch, 2},
                        {"flat_scratch_lo", kFlatScratch, 1},
                        {"flat_scratch_hi", kFlatScratch + 1, 1},
                        {"xnack_mask", kXnackMask, 2},
                        {"xnack_mask_lo", kXnackMask, 1},
                        {"xnack_mask_hi", kXnackMask + 1, 1},
                        {"src_shared_base", kSharedBase, pair},
                        {"src_shared_limit", kSharedLimit, pair},
                        {"src_private_base", kPrivateBase, pair},
                        {"src_private_limit", kPrivateLimit, pair},
                        {"src_vccz", kVccz, 1},
                        {"src_execz", kExecz, 1},
                        {"src_scc", kScc, 1},
                        {"scc", kScc, 1}};
  for (const Name& name : names) {
    if (name.name != text) continue;
    result.where = Where::scalar;
    result.first = name.number;
    result.count = name.count;
    return true;
  }
  return false;
}

bool register_operand(Operand& result, std::string_view text, Wide type) {
  if (named_scalar(result, text, type)) return true;
  constexpr std::pair<std::string_view, Where> kFiles[] = {{"ttmp", Where::scalar},
                                                           {"v", Where::vector},
                                                           {"a", Where::accumulator},
                                                           {"s", Where::scalar}};
  for (const auto& [prefix, where] : kFiles) {
    std::string_view rest = text;
    if (!consume(rest, prefix) || !register_range(result, rest)) continue;
    result.where = where;
    if (prefix == "ttmp") result.first = static_cast<uint16_t>(result.first + kTrapTemporary);
    const int limit = where == Where::scalar ? 128 : 256;
    return result.first + result.count <= limit;
  }
  return false;
}

bool operand(Operand& result, std::string_view text, Wide type) {
  if (text == "off") {
    result.where = Where::off;
    return true;
  }
  result.sign_extend = unwrap(text, "sext(", ")");
  if (unwrap(text, "neg(", ")")) result.negate = true;
  if (text.starts_with("-") && text.size() > 1 && (text[1] < '0' || text[1] > '9')) {
    result.negate = true;
    text.remove_prefix(1);
  }
  if (unwrap(text, "|", "|") || unwrap(text, "abs(", ")")) result.absolute = true;
  return register_operand(result, text, type) || constant(result, text, type);
}

/// "[1,0,1]": bit i is entry i.
bool bit_list(std::string_view text, uint8_t& bits) {
  if (!unwrap(text, "[", "]")) return false;
  bits = 0;
  for (int i = 0; !text.empty(); ++i) {
    if (text[0] == '1') bits = static_cast<uint8_t>(bits | 1 << i);
    text.remove_prefix(std::min<size_t>(2, text.size()));
  }
  return true;
}

bool flag(Modifiers& m, std::string_view word) {
  const std::pair<std::string_view, bool*> flags[] = {
      {"clamp", &m.clamp}, {"idxen", &m.idxen}, {"offen", &m.offen},
      {"lds", &m.lds},     {"sc0", &m.sc0},     {"glc", &m.sc0},
      {"sc1", &m.sc1},     {"nt", &m.nt},       {"gds", &m.gds}};
  for (const auto& [name, value] : flags)
    if (word == name) return *value = true;
  return false;
}

bool valued(Modifiers& m, std::string_view key, std::string_view value) {
  if (key == "op_sel") return bit_list(value, m.op_sel);
  if (key == "op_sel_hi") return bit_list(value, m.op_sel_hi);
  if (key == "neg_lo") return bit_list(value, m.neg_lo);
  if (key == "neg_hi") return bit_list(value, m.neg_hi);
  if (key == "neg") return bit_list(value, m.blgp);
  constexpr std::string_view kEncoded[] = {"quad_perm", "row_shl",    "row_shr",      "row_ror",
                                           "row_bcast", "wave_shl",   "wave_shr",     "wave_rol",
                                           "wave_ror",  "row_mask",   "row_newbcast", "bank_mask",
                                           "dst_sel",   "dst_unused", "src0_sel",     "src1_sel"};
  for (const std::string_view name : kEncoded)
    if (key == name) return true;
  if (key == "offset" && value.starts_with("swizzle(")) return true;
  const auto number = integer(value);
  if (!number) return false;
  const int32_t n = static_cast<int32_t>(*number);
  const auto set = [&](auto& field, int value) {
    field = static_cast<std::remove_reference_t<decltype(field)>>(value);
    return true;
  };
  if (key == "offset") return set(m.offset, n);
  if (key == "offset0") return set(m.offset0, n);
  if (key == "offset1") return set(m.offset1, n);
  if (key == "mul") return set(m.output_scale, n == 2 ? 1 : 2);
  if (key == "div") return set(m.output_scale, 3);
  if (key == "cbsz") return set(m.cbsz, n);
  if (key == "bound_ctrl") return set(m.bound_ctrl, n);
  if (key == "fi") return set(m.fetch_inactive, n);
  if (key == "abid") return set(m.abid, n);
  if (key == "blgp") return set(m.blgp, n);
  return key == "bitop3" && set(m.bitop3, n);
}

bool modifier(Modifiers& m, std::string_view word) {
  if (flag(m, word) || word == "row_mirror" || word == "row_half_mirror") return true;
  const size_t colon = word.find(':');
  return colon != word.npos && colon > 1 &&
         valued(m, word.substr(0, colon), word.substr(colon + 1));
}

/// Cuts at `separator` outside of brackets; returns the piece and leaves the rest.
std::string_view cut(std::string_view& text, char separator) {
  int depth = 0;
  size_t at = 0;
  for (; at < text.size(); ++at) {
    if (text[at] == '(' || text[at] == '[') ++depth;
    if (text[at] == ')' || text[at] == ']') --depth;
    if (text[at] == separator && depth == 0) break;
  }
  const std::string_view piece = text.substr(0, at);
  text.remove_prefix(std::min(at + 1, text.size()));
  return piece;
}

struct Operands {
  Operand at[6];
  int count = 0;
};

Operands read_operands(Instruction& instruction, std::string_view mnemonic, std::string_view rest) {
  Operands result;
  const Wide type = wide(mnemonic);
  while (!rest.empty()) {
    std::string_view piece = cut(rest, ',');
    while (consume(piece, " ")) {
    }
    while (!piece.empty()) {
      const std::string_view word = cut(piece, ' ');
      if (word.empty() || modifier(instruction.modifiers, word)) continue;
      if (word.starts_with("hwreg(") || word.starts_with("gpr_idx(") ||
          word.starts_with("sendmsg("))
        continue;  // in `immediate`
      if (result.count == 6 || !operand(result.at[result.count], word, type))
        fail(instruction, word);
      ++result.count;
    }
  }
  return result;
}

}  // namespace

void parse(Instruction& instruction, std::span<const uint32_t> encoding) {
  std::string_view rest = instruction.text;
  const std::string_view mnemonic = cut(rest, ' ');
  read_encoding(instruction, mnemonic, encoding);
  if (mnemonic == "s_waitcnt") return;
  // Everywhere else op_sel_hi is printed unless it is all ones.
  if (mnemonic.starts_with("v_fma_mix")) instruction.modifiers.op_sel_hi = 0;
  const Operands operands = read_operands(instruction, mnemonic, rest);
  assign(instruction, mnemonic, {operands.at, static_cast<size_t>(operands.count)}, encoding);
}

}  // namespace hipdecode::sim
