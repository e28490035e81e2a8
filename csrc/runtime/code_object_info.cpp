// SPDX-License-Identifier: MIT
#include "code_object_info.h"

#include <elf.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <optional>

#include "../abi/abi_version.h"
#include "error.h"

namespace hipdecode::runtime {
namespace {

/// An ELF file's symbols. Nothing that lies outside of the file is read.
class Elf {
 public:
  Elf(std::string_view bytes, const std::string& path) : bytes_(bytes), path_(path) {
    header_ = at<Elf64_Ehdr>(0, "an ELF header");
    HIPDECODE_CHECK(
        std::memcmp(header_.e_ident, ELFMAG, SELFMAG) == 0 &&
            header_.e_ident[EI_CLASS] == ELFCLASS64 && header_.e_ident[EI_DATA] == ELFDATA2LSB,
        "artefact ", path_, ": expected a 64-bit ELF file, got another; delete it and build again");
  }

  uint16_t machine() const { return header_.e_machine; }

  /// The object of type T that a symbol names; none where there is no such symbol.
  template <class T>
  std::optional<T> find(const std::string& name) const {
    for (uint16_t i = 0; i < header_.e_shnum; ++i) {
      const Elf64_Shdr table = section(i);
      if (table.sh_type != SHT_SYMTAB && table.sh_type != SHT_DYNSYM) continue;
      const Elf64_Shdr names = section(table.sh_link);
      for (uint64_t at_byte = 0; at_byte + sizeof(Elf64_Sym) <= table.sh_size;
           at_byte += sizeof(Elf64_Sym)) {
        const auto symbol = at<Elf64_Sym>(table.sh_offset + at_byte, "a symbol");
        if (!is_named(names, symbol, name)) continue;
        const Elf64_Shdr home = section(symbol.st_shndx);
        return at<T>(home.sh_offset + (symbol.st_value - home.sh_addr), name.c_str());
      }
    }
    return std::nullopt;
  }

 private:
  template <class T>
  T at(uint64_t offset, const char* what) const {
    HIPDECODE_CHECK(offset <= bytes_.size() && bytes_.size() - offset >= sizeof(T), "artefact ",
                    path_, ": expected ", what, " at byte ", offset, ", got ", bytes_.size(),
                    " bytes in all; delete it and build again");
    T value;
    std::memcpy(&value, bytes_.data() + offset, sizeof(T));
    return value;
  }

  Elf64_Shdr section(uint64_t index) const {
    return at<Elf64_Shdr>(header_.e_shoff + index * sizeof(Elf64_Shdr), "a section header");
  }

  bool is_named(const Elf64_Shdr& names, const Elf64_Sym& symbol, const std::string& name) const {
    if (symbol.st_shndx == SHN_UNDEF || symbol.st_shndx >= header_.e_shnum) return false;
    const uint64_t start = names.sh_offset + symbol.st_name;
    if (start >= bytes_.size()) return false;
    const std::string_view text = bytes_.substr(start, name.size() + 1);
    return text.size() == name.size() + 1 && text.starts_with(name) && text.back() == '\0';
  }

  std::string_view bytes_;
  const std::string& path_;
  Elf64_Ehdr header_;
};

/// The head of the kernel descriptor that precedes code on amdgcn (LLVM's AMDGPUUsage, "Kernel
/// Descriptor").
struct KernelDescriptor {
  uint32_t group_segment_bytes, private_segment_bytes, kernarg_bytes;
};

constexpr uint16_t kMachineAmdgpu = 224;

}  // namespace

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  HIPDECODE_CHECK(file, "artefact ", path, ": expected a readable file, got ", std::strerror(errno),
                  "; build it again");
  return {std::istreambuf_iterator<char>(file), {}};
}

void check_abi_version(const abi::KernelInfo& info, const std::string& path) {
  HIPDECODE_CHECK(info.abi_version == abi::kAbiVersion, "artefact ", path,
                  ": expected ABI version ", abi::kAbiVersion, ", got ", info.abi_version,
                  "; build it with this version of hipdecode");
}

CodeObjectInfo read_code_object_info(std::string_view elf, const std::string& path,
                                     const std::string& symbol) {
  const Elf file(elf, path);
  const auto info = file.find<abi::KernelInfo>("hipdecode_kernel_info");
  HIPDECODE_CHECK(info, "artefact ", path,
                  ": expected the symbol hipdecode_kernel_info, got none; build it again");
  check_abi_version(*info, path);
  HIPDECODE_CHECK(info->threads >= 1 && info->params_bytes >= 1 && info->shared_bytes >= 0,
                  "artefact ", path, ": expected a block of threads, got ", info->threads,
                  " threads, ", info->params_bytes, " parameter bytes, ", info->shared_bytes,
                  " shared bytes; build it again");
  CodeObjectInfo found{*info};
  if (file.machine() != kMachineAmdgpu) return found;
  const auto descriptor = file.find<KernelDescriptor>(symbol + ".kd");
  HIPDECODE_CHECK(descriptor, "artefact ", path, ": expected the kernel ", symbol,
                  ", got no descriptor of that name; build it again");
  found.group_segment_bytes = descriptor->group_segment_bytes;
  found.private_segment_bytes = descriptor->private_segment_bytes;
  return found;
}

}  // namespace hipdecode::runtime
