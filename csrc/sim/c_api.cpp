// SPDX-License-Identifier: MIT
#define HIPDECODE_SIM_BUILD
#include "c_api.h"

#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <new>

#include "isa/opcodes.h"
#include "run/json.h"
#include "run/scheduler.h"

namespace hipdecode::sim {
namespace {

constexpr size_t kJournalEntries = 256;

/// What a program handle points to.
struct Loaded {
  Loaded(const std::string& path, const std::string& arch) : program(path, arch) {}

  Program program;
  std::mutex mutex;
  std::string counts = "{}";
};

struct Journal {
  std::mutex mutex;
  std::deque<std::string> entries;
};
Journal& journal() {
  static Journal instance;
  return instance;
}

void record(const std::string& kernel, const Grid& grid, int32_t threads,
            const std::string& counts) {
  const std::string blocks = json_list(grid, [](int64_t n) { return std::to_string(n); });
  const std::lock_guard lock(journal().mutex);
  auto& entries = journal().entries;
  entries.push_back(Json()
                        .add("kernel", kernel)
                        .raw("blocks", blocks)
                        .add("threads", threads)
                        .raw("counts", counts)
                        .object());
  if (entries.size() > kJournalEntries) entries.pop_front();
}

/// Copies text to a caller's buffer; returns the bytes that it needs.
int64_t give(const std::string& text, char* to, int64_t bytes) {
  const auto needed = static_cast<int64_t>(text.size()) + 1;
  if (to && needed <= bytes) std::memcpy(to, text.c_str(), text.size() + 1);
  return needed;
}

/// Runs `body`; what it throws becomes the message.
template <class Body>
int guarded(char* message, int64_t bytes, Body body) {
  std::string text;
  try {
    body();
    return 0;
  } catch (const std::bad_alloc&) {
    text = "simulator: expected enough memory, got none left; use fewer threads";
  } catch (const std::exception& error) {
    text = error.what();
  }
  if (message && bytes > 0) {
    const size_t count = std::min(text.size(), static_cast<size_t>(bytes) - 1);
    std::memcpy(message, text.data(), count);
    message[count] = 0;
  }
  return 1;
}

template <class Body>
int64_t guarded_json(char* json, int64_t bytes, Body body) {
  std::string text;
  char message[512] = "";
  if (guarded(message, sizeof message, [&] { text = body(); }))
    text = Json().add("error", message).object();
  return give(text, json, bytes);
}

std::string describe(const Kernel& kernel) {
  const KernelDescriptor& descriptor = kernel.descriptor;
  Json metadata;
  for (const auto& [key, value] : kernel.metadata.numbers) metadata.add(key, value);
  const std::string arguments =
      json_list(kernel.metadata.arguments, [](const ArgumentMetadata& argument) {
        return Json()
            .add("name", argument.name)
            .add("kind", argument.kind)
            .add("offset", argument.offset)
            .add("size", argument.size)
            .object();
      });
  return Json()
      .add("kernel", kernel.name)
      .add("kernarg_bytes", kernel.kernarg_bytes())
      .add("lds_bytes", kernel.lds_bytes())
      .add("scratch_bytes", kernel.scratch_bytes())
      .add("vector_registers", descriptor.vector_registers())
      .add("accumulator_offset", descriptor.accumulator_offset())
      .add("entry", descriptor.entry)
      .add("rsrc1", descriptor.rsrc1)
      .add("rsrc2", descriptor.rsrc2)
      .add("rsrc3", descriptor.rsrc3)
      .raw("metadata", metadata.object())
      .raw("arguments", arguments)
      .object();
}

std::string describe(const Program& program, const Instruction& instruction) {
  return Json()
      .add("address", static_cast<int64_t>(instruction.address))
      .add("encoding", program.encoding(instruction))
      .add("text", instruction.text)
      .raw("known", instruction.opcode ? "true" : "false")
      .object();
}

Options options_of(const hipdecode_sim_options& from, std::vector<Extent>& extents) {
  if (from.checks & kCheckBounds)
    for (uint32_t i = 0; i < from.extent_count; ++i)
      extents.push_back({from.extents[i].address, from.extents[i].bytes});
  return {.seed = from.seed,
          .quantum = from.quantum,
          .threads = from.threads,
          .checks = from.checks,
          .instruction_limit = from.instruction_limit,
          .extents = extents};
}

Loaded& loaded(void* program) { return *static_cast<Loaded*>(program); }

}  // namespace
}  // namespace hipdecode::sim

using namespace hipdecode::sim;  // NOLINT: the functions below have C names

int hipdecode_sim_load(const char* path, const char* arch, void** program, char* message,
                       int64_t bytes) {
  return guarded(message, bytes, [&] { *program = new Loaded(path, arch); });
}

void hipdecode_sim_unload(void* program) { delete static_cast<Loaded*>(program); }

int hipdecode_sim_launch(void* program, const char* symbol, const void* kernarg,
                         int64_t kernarg_bytes, int64_t blocks_x, int64_t blocks_y,
                         int64_t blocks_z, int32_t threads, int64_t dynamic_lds,
                         const hipdecode_sim_options* options, char* message, int64_t bytes) {
  return guarded(message, bytes, [&] {
    Loaded& handle = loaded(program);
    const Grid grid = {blocks_x, blocks_y, blocks_z};
    const Launch launch(handle.program, symbol,
                        {static_cast<const uint8_t*>(kernarg), static_cast<size_t>(kernarg_bytes)},
                        grid, threads, dynamic_lds);
    std::vector<Extent> extents;
    const std::string counts = run(launch, options_of(*options, extents)).json();
    record(symbol, grid, threads, counts);
    const std::lock_guard lock(handle.mutex);
    handle.counts = counts;
  });
}

int64_t hipdecode_sim_counts(void* program, char* json, int64_t bytes) {
  const std::lock_guard lock(loaded(program).mutex);
  return give(loaded(program).counts, json, bytes);
}

int64_t hipdecode_sim_journal(char* json, int64_t bytes) {
  const std::lock_guard lock(journal().mutex);
  return give(json_list(journal().entries, [](const std::string& entry) { return entry; }), json,
              bytes);
}

void hipdecode_sim_clear_journal(void) {
  const std::lock_guard lock(journal().mutex);
  journal().entries.clear();
}

int64_t hipdecode_sim_info(void* program, const char* symbol, char* json, int64_t bytes) {
  return guarded_json(json, bytes, [&] {
    const CodeObject& object = loaded(program).program.object();
    if (*symbol) return describe(object.kernel(symbol));
    return json_list(object.kernels, [](const Kernel& kernel) { return describe(kernel); });
  });
}

int64_t hipdecode_sim_disassembly(void* program, char* json, int64_t bytes) {
  return guarded_json(json, bytes, [&] {
    const Program& code = loaded(program).program;
    return json_list(code.instructions(),
                     [&](const Instruction& instruction) { return describe(code, instruction); });
  });
}

int64_t hipdecode_sim_opcodes(char* json, int64_t bytes) {
  return guarded_json(json, bytes, [] {
    return json_list(all_opcodes(), [](const Opcode& opcode) {
      return Json()
          .add("name", opcode.name)
          .add("class", class_name(opcode.kind))
          .add("section", opcode.section)
          .object();
    });
  });
}
