// SPDX-License-Identifier: MIT
#include "counts.h"

#include <algorithm>
#include <sstream>

namespace hipdecode::sim {
namespace {

constexpr std::string_view kClassNames[kClasses] = {
    "salu", "smem", "branch",        "wait", "barrier",     "valu",  "transcendental",
    "mfma", "lds",  "lds_transpose", "vmem", "vmem_to_lds", "atomic"};

struct Field {
  std::string_view name;
  int64_t Totals::* value;
};
constexpr Field kFields[] = {
    {"instructions", &Totals::instructions},
    {"barriers", &Totals::barriers},
    {"mfma_passes", &Totals::mfma_passes},
    {"global_bytes_read", &Totals::global_bytes_read},
    {"global_bytes_written", &Totals::global_bytes_written},
    {"direct_to_lds_bytes", &Totals::direct_to_lds_bytes},
    {"lds_bytes_read", &Totals::lds_bytes_read},
    {"lds_bytes_written", &Totals::lds_bytes_written},
    {"lds_cycles", &Totals::lds_cycles},
    {"lds_conflict_cycles", &Totals::lds_conflict_cycles},
};

template <class Combine>
void combine(Totals& into, const Totals& from, Combine combine_two) {
  for (const Field& field : kFields) {
    into.*field.value = combine_two(into.*field.value, from.*field.value);
  }
  for (size_t i = 0; i < into.by_class.size(); ++i) {
    into.by_class[i] = combine_two(into.by_class[i], from.by_class[i]);
  }
}

int64_t plus(int64_t a, int64_t b) { return a + b; }
int64_t larger(int64_t a, int64_t b) { return std::max(a, b); }

void print(std::ostream& out, const Totals& totals) {
  out << "{";
  for (const Field& field : kFields) {
    out << "\"" << field.name << "\": " << totals.*field.value << ", ";
  }
  out << "\"by_class\": {";
  for (int i = 0; i < kClasses; ++i) {
    out << (i == 0 ? "" : ", ") << "\"" << kClassNames[i]
        << "\": " << totals.by_class[static_cast<size_t>(i)];
  }
  out << "}}";
}

}  // namespace

std::string_view class_name(Class kind) { return kClassNames[static_cast<size_t>(kind)]; }

void Counts::clear() {
  const size_t instructions = executed.size();
  *this = Counts(instructions);
}

int mfma_passes(const Instruction& instruction) {
  const int passes = instruction.opcode->passes;
  if (instruction.opcode->name.find("f8f6f4") == std::string_view::npos) return passes;
  // The table has the rate of 8-bit elements; twice as fast where neither operand has them.
  const Modifiers& modifiers = instruction.modifiers;
  return modifiers.cbsz >= 2 && modifiers.blgp >= 2 ? passes / 2 : passes;
}

void LaunchCounts::add(const Counts& counts, std::span<const Instruction> instructions) {
  Totals totals;
  totals.global_bytes_read = counts.global_bytes_read;
  totals.global_bytes_written = counts.global_bytes_written;
  totals.direct_to_lds_bytes = counts.direct_to_lds_bytes;
  totals.lds_bytes_read = counts.lds_bytes_read;
  totals.lds_bytes_written = counts.lds_bytes_written;
  totals.lds_cycles = counts.lds_cycles;
  totals.lds_conflict_cycles = counts.lds_conflict_cycles;
  for (size_t i = 0; i < instructions.size(); ++i) {
    const int64_t times = counts.executed[i];
    if (times == 0) continue;
    const Instruction& instruction = instructions[i];
    totals.instructions += times;
    totals.by_class[static_cast<size_t>(instruction.opcode->kind)] += times;
    if (instruction.opcode->kind == Class::barrier) totals.barriers += times;
    if (instruction.opcode->kind == Class::mfma)
      totals.mfma_passes += times * mfma_passes(instruction);
    by_mnemonic_[instruction.opcode->name] += times;
  }
  ++workgroups_;
  combine(sum_, totals, plus);
  combine(max_, totals, larger);
}

void LaunchCounts::merge(const LaunchCounts& other) {
  workgroups_ += other.workgroups_;
  combine(sum_, other.sum_, plus);
  combine(max_, other.max_, larger);
  for (const auto& [name, times] : other.by_mnemonic_) by_mnemonic_[name] += times;
}

std::string LaunchCounts::json() const {
  std::ostringstream out;
  out << "{\"workgroups\": " << workgroups_ << ", \"sum\": ";
  print(out, sum_);
  out << ", \"max\": ";
  print(out, max_);
  out << ", \"by_mnemonic\": {";
  const char* separator = "";
  for (const auto& [name, times] : by_mnemonic_) {
    out << separator << "\"" << name << "\": " << times;
    separator = ", ";
  }
  out << "}}";
  return out.str();
}

}  // namespace hipdecode::sim
