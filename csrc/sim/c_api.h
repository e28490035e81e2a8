/* SPDX-License-Identifier: MIT
 *
 * The simulator's interface: a shared library of its own, opened at run time. */
#pragma once

#include <stdint.h>

#if defined(HIPDECODE_SIM_BUILD)
#define HIPDECODE_SIM_API __attribute__((visibility("default")))
#else
#define HIPDECODE_SIM_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Global memory that a kernel may touch. */
struct hipdecode_sim_extent {
  uint64_t address, bytes;
};

/** Bits of hipdecode_sim_options::checks, as in options.h. */
enum {
  HIPDECODE_SIM_WAITS = 1,
  HIPDECODE_SIM_RACES = 2,
  HIPDECODE_SIM_UNINITIALISED = 4,
  HIPDECODE_SIM_BOUNDS = 8,
  HIPDECODE_SIM_HAZARDS = 16,
};

struct hipdecode_sim_options {
  uint64_t seed;              /* of the order in which waves run */
  uint64_t instruction_limit; /* of one workgroup; 0: 10^9 */
  uint32_t quantum;           /* instructions of a turn; 0: drawn, as is who is next */
  uint32_t threads;           /* host threads, at least 1 */
  uint32_t checks;
  uint32_t extent_count;                      /* 0: whatever the process has mapped */
  const struct hipdecode_sim_extent* extents; /* used with HIPDECODE_SIM_BOUNDS alone */
};

/* Functions that can fail return 0, or 1 with `message` filled (at most `bytes`, 0-terminated).
 * Functions that write JSON return the bytes that they need, terminator included; where that is
 * more than `bytes`, nothing is written. Any thread may call any of them. */

/** Reads and decodes a code object. `arch`: "gfx942", "gfx950", or "" for what the ELF says. */
HIPDECODE_SIM_API int hipdecode_sim_load(const char* path, const char* arch, void** program,
                                         char* message, int64_t bytes);
HIPDECODE_SIM_API void hipdecode_sim_unload(void* program);

/** Runs a kernel to its end. `kernarg` holds the explicit arguments; `threads` is the size of a
 * workgroup, `dynamic_lds` bytes on top of what the kernel declares. */
HIPDECODE_SIM_API int hipdecode_sim_launch(void* program, const char* symbol, const void* kernarg,
                                           int64_t kernarg_bytes, int64_t blocks_x,
                                           int64_t blocks_y, int64_t blocks_z, int32_t threads,
                                           int64_t dynamic_lds,
                                           const struct hipdecode_sim_options* options,
                                           char* message, int64_t bytes);

/** What the last launch that ended well counted. */
HIPDECODE_SIM_API int64_t hipdecode_sim_counts(void* program, char* json, int64_t bytes);
/** The same of this process's launches, whoever made them: a list of {kernel, blocks, threads,
 * counts}, the last 256 since it was cleared. */
HIPDECODE_SIM_API int64_t hipdecode_sim_journal(char* json, int64_t bytes);
HIPDECODE_SIM_API void hipdecode_sim_clear_journal(void);

/** Facts about the kernels: the descriptor's and the metadata's. `symbol` empty: all, a list. */
HIPDECODE_SIM_API int64_t hipdecode_sim_info(void* program, const char* symbol, char* json,
                                             int64_t bytes);
/** Address, encoding, text and whether the opcode is known, of each instruction. */
HIPDECODE_SIM_API int64_t hipdecode_sim_disassembly(void* program, char* json, int64_t bytes);
/** The table of opcodes: name, class, section of the ISA guide. */
HIPDECODE_SIM_API int64_t hipdecode_sim_opcodes(char* json, int64_t bytes);

#ifdef __cplusplus
}
#endif
