// SPDX-License-Identifier: MIT
#include "scheduler.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>

#include "../check/checks.h"
#include "../state/lds.h"
#include "../state/memory.h"

namespace hipdecode::sim {
namespace {

constexpr uint64_t kDefaultLimit = 1'000'000'000;
constexpr uint32_t kMaxRandomQuantum = 32;

/// splitmix64: the sequence of one workgroup.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((next() >> 32) * bound >> 32); }

 private:
  uint64_t state_;
};

std::string where(const Launch& launch, const Grid& group) {
  return "kernel " + launch.kernel().name + ", workgroup (" + std::to_string(group[0]) + ", " +
         std::to_string(group[1]) + ", " + std::to_string(group[2]) + ")";
}

std::string where(const Program& program, const Wave& wave) {
  char address[24];
  const auto instructions = program.instructions();
  const Instruction* at = wave.current;
  if (!at) at = &instructions[static_cast<size_t>(wave.pc)];
  std::snprintf(address, sizeof address, "0x%llx", static_cast<unsigned long long>(at->address));
  return "wave " + std::to_string(wave.index) + ", " + address + " [" + program.encoding(*at) +
         "] `" + at->text + "`";
}

/// One workgroup at a time; its buffers serve the next.
class Group {
 public:
  Group(const Launch& launch, const Options& options)
      : launch_(launch),
        options_(options),
        limit_(options.instruction_limit ? options.instruction_limit : kDefaultLimit),
        memory_(options.extents),
        lds_(launch.program().arch(), options.checks),
        waves_(static_cast<size_t>(launch.waves())),
        counts_(launch.program().instructions().size()) {
    const auto allow = [&](const void* address, size_t bytes) {
      if (bytes) memory_.allow({reinterpret_cast<uint64_t>(address), bytes});
    };
    scratch_.resize(waves_.size() * kLanes * static_cast<size_t>(launch.scratch_bytes()));
    allow(launch.program().object().image.data(), launch.program().object().image.size());
    allow(launch.kernarg().data(), launch.kernarg().size());
    allow(launch.packet().data(), launch.packet().size());
    allow(scratch_.data(), scratch_.size());
  }

  void run(int64_t index) {
    const Grid group = launch_.group(index);
    start(group);
    Random random(options_.seed * 0x9e3779b97f4a7c15 + static_cast<uint64_t>(index));
    try {
      while (!running_.empty()) turn(random);
    } catch (const Fault& fault) {
      throw Fault(where(launch_, group) + ", " + where(launch_.program(), *current_) + ": " +
                  fault.what());
    }
    total_.add(counts_, launch_.program().instructions());
  }

  const LaunchCounts& counts() const { return total_; }

 private:
  void start(const Grid& group) {
    const auto scratch = reinterpret_cast<uint64_t>(scratch_.data());
    lds_.start(launch_.lds_bytes(), launch_.waves());
    counts_.clear();
    checks_.clear();
    running_.clear();
    issued_ = 0;
    next_ = 0;
    for (int i = 0; i < launch_.waves(); ++i) {
      Wave& wave = waves_[static_cast<size_t>(i)];
      launch_.start(wave, i, group, scratch);
      checks_.emplace_back(options_.checks, launch_.program().arch(), launch_.program().effects());
      running_.push_back(i);
    }
    current_ = waves_.data();
  }

  /// Lets one of the waves that can run do so for a quantum: in turn where it is fixed, so that a
  /// quantum of 1 is lockstep, else one drawn for a length drawn.
  void turn(Random& random) {
    const auto waves = static_cast<uint32_t>(running_.size());
    const uint32_t pick = options_.quantum ? next_++ % waves : random.below(waves);
    const uint32_t quantum =
        options_.quantum ? options_.quantum : 1 + random.below(kMaxRandomQuantum);
    const auto index = static_cast<size_t>(running_[pick]);
    current_ = &waves_[index];
    issued_ += steps(*current_, checks_[index], quantum);
    if (issued_ > limit_) throw Fault(endless());
    if (!current_->finished && !current_->at_barrier) return;
    running_.erase(running_.begin() + pick);
    next_ = pick;
    if (running_.empty()) release();
  }

  uint64_t steps(Wave& wave, Checks& checks, uint32_t quantum) {
    const auto instructions = launch_.program().instructions();
    Context context{
        wave, memory_, lds_, checks, counts_, launch_.program().arch(), launch_.program()};
    uint32_t done = 0;
    while (done < quantum && !wave.finished && !wave.at_barrier) {
      if (wave.pc >= static_cast<int64_t>(instructions.size()))
        throw Fault("program counter: expected s_endpgm, got the end of the code");
      const Instruction& instruction = instructions[static_cast<size_t>(wave.pc)];
      wave.current = &instruction;
      ++wave.pc;
      if (!instruction.opcode)
        throw Fault("opcode: expected one of `hipdecode sim opcodes`, got " +
                    instruction.text.substr(0, instruction.text.find(' ')) + "; add it");
      if (options_.checks) checks.before(context, instruction);
      ++counts_.executed[static_cast<size_t>(instruction.index)];
      instruction.opcode->execute(context, instruction);
      if (options_.checks) checks.after(context, instruction);
      ++wave.issued;
      ++done;
    }
    return done;
  }

  /// Nobody can run: all have ended, or all others are at the barrier (an ended wave counts as
  /// one that has arrived, as on the hardware).
  void release() {
    for (Wave& wave : waves_) {
      if (wave.finished) continue;
      wave.at_barrier = false;
      running_.push_back(wave.index);
    }
    if (!running_.empty()) lds_.barrier();
  }

  std::string endless() const {
    std::string result = "deadlock or endless loop: expected the workgroup to end within " +
                         std::to_string(limit_) + " instructions, got";
    for (const Wave& wave : waves_) {
      const char* state = wave.finished ? "ended" : wave.at_barrier ? "at a barrier" : "running";
      result += (wave.index ? ", " : " ") + std::string("wave ") + std::to_string(wave.index) +
                " " + state;
    }
    return result + "; raise the limit if it is only long";
  }

  const Launch& launch_;
  const Options& options_;
  uint64_t limit_, issued_ = 0;
  Memory memory_;
  Lds lds_;
  std::vector<Wave> waves_;
  std::vector<Checks> checks_;
  std::vector<uint8_t> scratch_;
  std::vector<int> running_;  // waves that have neither ended nor arrived at a barrier
  uint32_t next_ = 0;         // whose turn it is among `running_`, where the quantum is fixed
  Wave* current_ = nullptr;
  Counts counts_;
  LaunchCounts total_;
};

/// The fault of the first workgroup, whatever thread finds its own first.
class FirstFault {
 public:
  void offer(int64_t group, std::exception_ptr error) {
    const std::lock_guard lock(mutex_);
    if (group < group_) {
      group_ = group;
      error_ = error;
    }
  }
  /// Whether a workgroup before `group` has failed already.
  bool before(int64_t group) const { return group_.load() < group; }
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

 private:
  std::mutex mutex_;
  std::atomic<int64_t> group_ = INT64_MAX;
  std::exception_ptr error_;
};

}  // namespace

LaunchCounts run(const Launch& launch, const Options& options) {
  std::atomic<int64_t> next = 0;
  FirstFault fault;
  std::mutex mutex;
  LaunchCounts total;
  const auto work = [&] {
    int64_t index = -1;
    try {
      Group group(launch, options);
      while ((index = next.fetch_add(1)) < launch.groups() && !fault.before(index))
        group.run(index);
      const std::lock_guard lock(mutex);
      total.merge(group.counts());
    } catch (...) {
      fault.offer(index, std::current_exception());
    }
  };
  const int64_t threads = std::clamp<int64_t>(options.threads, 1, launch.groups());
  {
    std::vector<std::jthread> others;
    for (int64_t i = 1; i < threads; ++i) others.emplace_back(work);
    work();
  }
  fault.rethrow();
  return total;
}

}  // namespace hipdecode::sim
