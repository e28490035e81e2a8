// SPDX-License-Identifier: MIT
#include "hazards.h"

#include <algorithm>
#include <string>

namespace hipdecode::sim {
namespace {

constexpr int kFurthestMatrix = 20;  // the longest distance after an MFMA
constexpr int kFurthestRecent = 5;   // and after anything else

int slot_of(const Wave& wave, const Registers& registers, int i) {
  return registers.first + i +
         (registers.where == Where::accumulator ? wave.accumulator_offset : 0);
}

bool overlap(const Registers& a, const Registers& b) {
  return a.where == b.where && a.first < b.first + b.count && b.first < a.first + a.count;
}

const Registers* written_of(const Effects& writer, const Registers& wanted) {
  for (int i = 0; i < writer.write_count; ++i) {
    const Registers& registers = writer.writes[static_cast<size_t>(i)];
    if (overlap(registers, wanted)) return &registers;
  }
  return nullptr;
}

[[noreturn]] void fault(const std::string& what, int64_t distance, int needed) {
  throw Fault("hazards: " + what + " after " + std::to_string(distance) +
              " wait states; the hardware needs " + std::to_string(needed) + " (s_nop " +
              std::to_string(needed - distance - 1) + " or independent instructions)");
}

/// Wait states that `reader` must keep from the VALU instruction `writer` of `registers`.
int read_distance(const Effects& writer, const Effects& reader, const Registers& registers,
                  bool gfx950) {
  const bool scalar = registers.where == Where::scalar;
  if (reader.vmem) return scalar ? 5 : 0;
  if (!reader.valu) return 0;
  if (scalar) {
    if (registers.first == kVcc && reader.div_fmas) return 4;
    return reader.readlane || reader.writelane ? 4 : 2;
  }
  if (reader.matrix) return writer.matrix ? 0 : 2;
  if (reader.dpp || (reader.permlane && gfx950)) return 2;
  if (reader.readlane) return 1;
  if (writer.transcendental && !reader.transcendental) return 1;
  return 0;
}

/// The same from an instruction of any kind, where only DPP, M0 and wide stores matter.
int other_distance(const Effects& writer, const Effects& reader, const Registers& registers) {
  if (registers.where == Where::scalar) {
    return reader.reads_m0 && registers.first == kM0 && !writer.valu ? 1 : 0;
  }
  return reader.dpp ? 2 : 0;
}

bool touches(const Effects& effects, const Registers& registers) {
  for (int i = 0; i < effects.read_count; ++i) {
    if (overlap(effects.reads[static_cast<size_t>(i)], registers)) return true;
  }
  return written_of(effects, registers) != nullptr;
}

int exec_distance(const Effects& reader) {
  if (reader.dpp) return 5;
  return reader.matrix || reader.readlane || reader.writelane || reader.permlane ? 4 : 0;
}

}  // namespace

void Hazards::before(const Wave& wave, const Effects& effects) {
  const bool memory = effects.vmem || effects.lds;
  if (!memory && !effects.valu) return;
  check_recent(effects);
  if (any_matrix_) check_matrix(wave, effects);
}

void Hazards::check_recent(const Effects& effects) {
  for (unsigned back = 1; back <= recent_.size(); ++back) {
    const Recent& recent = recent_[(next_ - back) % recent_.size()];
    const auto distance = static_cast<int64_t>(clock_ - recent.end);
    if (recent.effects == nullptr || distance >= kFurthestRecent) return;
    const Effects& writer = *recent.effects;
    for (int i = 0; i < effects.read_count; ++i) {
      const Registers& registers = effects.reads[static_cast<size_t>(i)];
      const int needed =
          std::max(writer.valu ? read_distance(writer, effects, registers, gfx950_) : 0,
                   other_distance(writer, effects, registers));
      if (needed > distance && written_of(writer, registers) != nullptr) {
        fault(name_of(registers) + " is read", distance, needed);
      }
    }
    if (!effects.valu) continue;
    if (writer.writes_exec && exec_distance(effects) > distance) {
      fault("EXEC is used", distance, exec_distance(effects));
    }
    if (distance == 0 && writer.shifts_result && touches(effects, writer.writes[0])) {
      fault(name_of(writer.writes[0]) + ", of which a part was written, is used", distance, 1);
    }
    if (distance < 2 && writer.wide_store) {
      const Registers& data = writer.reads[static_cast<size_t>(writer.data)];
      if (written_of(effects, data) != nullptr) {
        fault(name_of(data) + " is overwritten while a wide store still reads it,", distance, 2);
      }
    }
  }
}

/// From an MFMA to who uses its result: operands A and B, VALU, memory, or an overwrite.
int Hazards::result_distance(const Matrix& matrix) const {
  if (!matrix.xdl) return matrix.passes + 2;
  return matrix.passes + 3 + (gfx950_ && matrix.passes != 2 ? 1 : 0);
}

/// From an MFMA to one that adds to its result. The same registers are forwarded.
int Hazards::addend_distance(const Matrix& matrix, const Registers& addend, int slot,
                             const Effects& reader) const {
  const bool same = slot == matrix.first && addend.count == matrix.count;
  if (same) return matrix.passes == 2 ? 2 : 0;
  if (!matrix.xdl) return reader.xdl ? 0 : matrix.passes;
  return matrix.passes + 1 + (gfx950_ && (reader.xdl || matrix.passes != 2) ? 1 : 0);
}

void Hazards::check_matrix(const Wave& wave, const Effects& effects) {
  if (clock_ - matrix_end_ >= kFurthestMatrix) {
    any_matrix_ = false;
    return;
  }
  for (int i = 0; i < effects.read_count; ++i) {
    const Registers& registers = effects.reads[static_cast<size_t>(i)];
    if (registers.where == Where::scalar) continue;
    check_matrix_read(wave, registers, effects, i == effects.matrix_c);
  }
  if (effects.matrix) return;
  for (int i = 0; i < effects.write_count; ++i) {
    const Registers& registers = effects.writes[static_cast<size_t>(i)];
    if (registers.where != Where::scalar) check_matrix_write(wave, registers);
  }
}

void Hazards::check_matrix_read(const Wave& wave, const Registers& registers,
                                const Effects& effects, bool addend) {
  const int first = slot_of(wave, registers, 0);
  for (int i = 0; i < registers.count; ++i) {
    const Matrix& matrix = matrix_[static_cast<size_t>(first + i)];
    if (matrix.written == 0) continue;
    const auto distance = static_cast<int64_t>(clock_ - matrix.written);
    if (distance >= kFurthestMatrix) continue;
    const int needed =
        addend ? addend_distance(matrix, registers, first, effects) : result_distance(matrix);
    if (needed > distance) {
      fault(name_of(registers, i) + ", the result of an MFMA of " + std::to_string(matrix.passes) +
                " passes, is read" + (addend ? " as an addend at other registers" : ""),
            distance, needed);
    }
  }
}

void Hazards::check_matrix_write(const Wave& wave, const Registers& registers) {
  for (int i = 0; i < registers.count; ++i) {
    const Matrix& matrix = matrix_[static_cast<size_t>(slot_of(wave, registers, i))];
    const auto distance = static_cast<int64_t>(clock_ - matrix.written);
    if (matrix.written != 0 && result_distance(matrix) > distance) {
      fault(name_of(registers, i) + ", the result of an MFMA of " + std::to_string(matrix.passes) +
                " passes, is overwritten",
            distance, result_distance(matrix));
    }
    const auto since_added = static_cast<int64_t>(clock_ - matrix.added);
    if (matrix.added != 0 && matrix.added_passes - 1 > since_added) {
      fault(name_of(registers, i) + ", the addend of an MFMA of " +
                std::to_string(matrix.added_passes) + " passes, is overwritten",
            since_added, matrix.added_passes - 1);
    }
  }
}

void Hazards::after(const Wave& wave, const Effects& effects) {
  clock_ += effects.wait_states;
  recent_[next_++ % recent_.size()] = {&effects, clock_};
  if (!effects.matrix) return;
  any_matrix_ = true;
  matrix_end_ = clock_;
  if (effects.matrix_c >= 0 && effects.xdl) {
    const Registers& addend = effects.reads[static_cast<size_t>(effects.matrix_c)];
    for (int i = 0; i < addend.count; ++i) {
      Matrix& matrix = matrix_[static_cast<size_t>(slot_of(wave, addend, i))];
      matrix.added = clock_;
      matrix.added_passes = effects.passes;
    }
  }
  const Registers& result = effects.writes[0];
  const auto first = static_cast<uint16_t>(slot_of(wave, result, 0));
  for (int i = 0; i < result.count; ++i) {
    Matrix& matrix = matrix_[static_cast<size_t>(first + i)];
    matrix.written = clock_;
    matrix.first = first;
    matrix.count = result.count;
    matrix.passes = effects.passes;
    matrix.xdl = effects.xdl;
  }
}

}  // namespace hipdecode::sim
