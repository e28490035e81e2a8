// SPDX-License-Identifier: MIT
#include "opcodes.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace hipdecode::sim {
namespace {

std::vector<Opcode> assemble() {
  std::vector<Opcode> result;
  for (const auto family :
       {scalar_opcodes(), vector_opcodes(), memory_opcodes(), lds_opcodes(), matrix_opcodes()})
    result.insert(result.end(), family.begin(), family.end());
  std::sort(result.begin(), result.end(),
            [](const Opcode& a, const Opcode& b) { return a.name < b.name; });
  const auto twice =
      std::adjacent_find(result.begin(), result.end(),
                         [](const Opcode& a, const Opcode& b) { return a.name == b.name; });
  if (twice != result.end())
    throw std::logic_error("opcode table: expected each name once, got " +
                           std::string(twice->name) + " twice; remove one row");
  return result;
}

}  // namespace

std::span<const Opcode> all_opcodes() {
  static const std::vector<Opcode> table = assemble();
  return table;
}

const Opcode* find_opcode(std::string_view name) {
  const auto table = all_opcodes();
  const auto found = std::lower_bound(
      table.begin(), table.end(), name,
      [](const Opcode& row, std::string_view wanted) { return row.name < wanted; });
  return found != table.end() && found->name == name ? &*found : nullptr;
}

}  // namespace hipdecode::sim
