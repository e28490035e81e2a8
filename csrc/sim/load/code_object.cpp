// SPDX-License-Identifier: MIT
#include "code_object.h"

#include <elf.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace hipdecode::sim {
namespace {

constexpr uint16_t kMachineAmdgpu = 224;
constexpr uint32_t kNoteMetadata = 32;
constexpr uint64_t kMaxImage = uint64_t{1} << 30;
constexpr uint64_t kDescriptorBytes = 64;
// Relocations that LLVM leaves in a linked code object.
constexpr uint32_t kAbs64 = 3, kRelative64 = 13;

/// The file with bounds: every read says what was expected where it fails.
class Elf {
 public:
  Elf(std::string path, std::vector<uint8_t> bytes)
      : path_(std::move(path)), bytes_(std::move(bytes)) {}

  [[noreturn]] void fail(const std::string& expected, const std::string& got,
                         const std::string& advice) const {
    throw std::runtime_error(path_ + ": expected " + expected + ", got " + got + "; " + advice);
  }

  template <class T>
  T at(uint64_t offset) const {
    T result;
    std::memcpy(&result, range(offset, sizeof(T)).data(), sizeof(T));
    return result;
  }

  std::span<const uint8_t> range(uint64_t offset, uint64_t size) const {
    if (offset > bytes_.size() || size > bytes_.size() - offset)
      fail("a whole ELF file", "one that ends before its own headers say", "copy it again");
    return {bytes_.data() + offset, size};
  }

  std::string text(uint64_t offset) const {
    if (offset >= bytes_.size()) return {};
    const auto begin = bytes_.begin() + static_cast<std::ptrdiff_t>(offset);
    return {begin, std::find(begin, bytes_.end(), 0)};
  }

  Elf64_Ehdr header() const { return at<Elf64_Ehdr>(0); }
  std::vector<Elf64_Shdr> sections() const {
    return table<Elf64_Shdr>(header().e_shoff, header().e_shnum);
  }
  std::vector<Elf64_Phdr> segments() const {
    return table<Elf64_Phdr>(header().e_phoff, header().e_phnum);
  }

  template <class T>
  std::vector<T> table(uint64_t offset, uint64_t count) const {
    std::vector<T> result;
    for (uint64_t i = 0; i < count; ++i) result.push_back(at<T>(offset + i * sizeof(T)));
    return result;
  }
  size_t size() const { return bytes_.size(); }

 private:
  std::string path_;
  std::vector<uint8_t> bytes_;
};

std::string hex(uint64_t value) {
  char text[32];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

const Arch* find_arch(const Elf& elf, const std::string& wanted) {
  if (elf.size() < sizeof(Elf64_Ehdr))
    elf.fail("an ELF file", "fewer bytes than its header", "copy it again");
  const Elf64_Ehdr header = elf.header();
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0)
    elf.fail("an ELF file", "another format", "unbundle it with clang-offload-bundler");
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != kMachineAmdgpu)
    elf.fail("a 64-bit AMDGPU ELF", "machine " + std::to_string(header.e_machine),
             "compile it for gfx942 or gfx950");
  if (header.e_type != ET_DYN)
    elf.fail("a linked code object", "an object file", "link it with ld.lld -shared");
  const uint32_t mach = header.e_flags & 0xff;
  const auto* found = std::find_if(std::begin(kArchs), std::end(kArchs),
                                   [&](const Arch& arch) { return arch.elf_mach == mach; });
  if (found == std::end(kArchs))
    elf.fail("gfx942 or gfx950", "EF_AMDGPU_MACH " + hex(mach), "compile it for one of them");
  if (!wanted.empty() && wanted != found->name)
    elf.fail(wanted, std::string(found->name),
             "name that architecture or compile it for " + wanted);
  return found;
}

std::vector<uint8_t> load_segments(const Elf& elf) {
  uint64_t end = 0;
  for (const Elf64_Phdr& segment : elf.segments())
    if (segment.p_type == PT_LOAD) end = std::max(end, segment.p_vaddr + segment.p_memsz);
  if (end == 0 || end > kMaxImage)
    elf.fail("segments of 1 B to 1 GiB", std::to_string(end) + " bytes", "link it again");
  std::vector<uint8_t> image(end);
  for (const Elf64_Phdr& segment : elf.segments()) {
    if (segment.p_type != PT_LOAD) continue;
    const auto from = elf.range(segment.p_offset, segment.p_filesz);
    if (segment.p_vaddr > end || from.size() > end - segment.p_vaddr)
      elf.fail("segments of 1 B to 1 GiB", "one at " + hex(segment.p_vaddr), "link it again");
    std::copy(from.begin(), from.end(),
              image.begin() + static_cast<std::ptrdiff_t>(segment.p_vaddr));
  }
  return image;
}

std::vector<KernelMetadata> load_notes(const Elf& elf) {
  for (const Elf64_Phdr& segment : elf.segments()) {
    if (segment.p_type != PT_NOTE) continue;
    uint64_t at = 0;
    while (at + sizeof(Elf64_Nhdr) <= segment.p_filesz) {
      const auto note = elf.at<Elf64_Nhdr>(segment.p_offset + at);
      const uint64_t name = (uint64_t{note.n_namesz} + 3) / 4 * 4;
      const uint64_t body = segment.p_offset + at + sizeof note + name;
      if (note.n_type == kNoteMetadata) return read_metadata(elf.range(body, note.n_descsz));
      at += sizeof note + name + (uint64_t{note.n_descsz} + 3) / 4 * 4;
    }
  }
  return {};
}

KernelDescriptor unpack(std::span<const uint8_t> bytes, uint64_t address) {
  const auto word = [&](size_t at) {
    uint32_t result;
    std::memcpy(&result, bytes.data() + at, 4);
    return result;
  };
  KernelDescriptor result;
  result.lds_bytes = word(0);
  result.scratch_bytes = word(4);
  result.kernarg_bytes = word(8);
  result.entry = static_cast<int64_t>(address + (uint64_t{word(20)} << 32 | word(16)));
  result.rsrc3 = word(44);
  result.rsrc1 = word(48);
  result.rsrc2 = word(52);
  result.properties = static_cast<uint16_t>(word(56));
  return result;
}

bool inside(const CodeObject& object, uint64_t address, uint64_t bytes) {
  return address <= object.image.size() && bytes <= object.image.size() - address;
}

void load_kernels(const Elf& elf, CodeObject& object) {
  const std::vector<KernelMetadata> notes = load_notes(elf);
  const auto sections = elf.sections();
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_DYNSYM || section.sh_link >= sections.size()) continue;
    const uint64_t names = sections[section.sh_link].sh_offset;
    for (const auto& symbol :
         elf.table<Elf64_Sym>(section.sh_offset, section.sh_size / sizeof(Elf64_Sym))) {
      const std::string name = elf.text(names + symbol.st_name);
      if (!name.ends_with(".kd")) continue;
      if (!inside(object, symbol.st_value, kDescriptorBytes))
        elf.fail("kernel descriptors inside of the segments", name + " at " + hex(symbol.st_value),
                 "link it again");
      Kernel kernel;
      kernel.name = name.substr(0, name.size() - 3);
      kernel.descriptor =
          unpack({object.image.data() + symbol.st_value, kDescriptorBytes}, symbol.st_value);
      for (const KernelMetadata& note : notes)
        if (note.symbol == name || (note.symbol.empty() && note.name == kernel.name))
          kernel.metadata = note;
      object.kernels.push_back(std::move(kernel));
    }
  }
}

/// Position-dependent words become offsets into the image; Program adds where it lies.
void find_relocations(const Elf& elf, CodeObject& object) {
  const auto sections = elf.sections();
  for (const Elf64_Shdr& section : sections) {
    if (section.sh_type != SHT_RELA) continue;
    for (const auto& entry :
         elf.table<Elf64_Rela>(section.sh_offset, section.sh_size / sizeof(Elf64_Rela))) {
      const uint32_t type = static_cast<uint32_t>(ELF64_R_TYPE(entry.r_info));
      uint64_t value = static_cast<uint64_t>(entry.r_addend);
      if (type == kAbs64 && section.sh_link < sections.size())
        value += elf.at<Elf64_Sym>(sections[section.sh_link].sh_offset +
                                   ELF64_R_SYM(entry.r_info) * sizeof(Elf64_Sym))
                     .st_value;
      else if (type != kRelative64)
        elf.fail("R_AMDGPU_RELATIVE64 or ABS64", "relocation " + std::to_string(type),
                 "link it with ld.lld -shared");
      if (!inside(object, entry.r_offset, 8))
        elf.fail("relocations inside of the segments", hex(entry.r_offset), "link it again");
      object.relocations.push_back({entry.r_offset, value});
    }
  }
}

}  // namespace

int64_t Kernel::kernarg_bytes() const {
  return std::max<int64_t>(descriptor.kernarg_bytes, metadata.number(".kernarg_segment_size"));
}

int64_t Kernel::lds_bytes() const {
  return std::max<int64_t>(descriptor.lds_bytes, metadata.number(".group_segment_fixed_size"));
}

int64_t Kernel::scratch_bytes() const {
  return std::max<int64_t>(descriptor.scratch_bytes,
                           metadata.number(".private_segment_fixed_size"));
}

const Kernel& CodeObject::kernel(const std::string& symbol) const {
  std::string names;
  for (const Kernel& kernel : kernels) {
    if (kernel.name == symbol) return kernel;
    names += (names.empty() ? "" : ", ") + kernel.name;
  }
  throw std::runtime_error("kernel " + symbol + ": expected one of [" + names +
                           "], got another name; correct it");
}

CodeObject read_code_object(const std::string& path, const std::string& arch) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw std::runtime_error(path +
                             ": expected a code object, got no readable file; check the path");
  const Elf elf(path, {std::istreambuf_iterator<char>(file), {}});
  CodeObject object;
  object.arch = find_arch(elf, arch);
  object.image = load_segments(elf);
  for (const Elf64_Shdr& section : elf.sections()) {
    if (!(section.sh_flags & SHF_EXECINSTR)) continue;
    object.text_address = section.sh_addr;
    object.text_bytes = section.sh_size;
  }
  if (object.text_bytes == 0 || !inside(object, object.text_address, object.text_bytes))
    elf.fail("a section of machine code", "none", "link it again");
  load_kernels(elf, object);
  if (object.kernels.empty())
    elf.fail("a kernel (a symbol *.kd)", "none", "declare one with amdgpu_kernel");
  find_relocations(elf, object);
  return object;
}

}  // namespace hipdecode::sim
