# SPDX-License-Identifier: MIT
"""What a code object says about its kernel, read from the file; nothing is loaded or run.

gfx: the AMDGPU metadata note, the kernel's symbol and the disassembly. sm_90: what the ELF file of
a cubin holds. All are facts of the code: none is a time.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from . import disassembly
from .errors import FactsError

_NOTE_METADATA = 32  # NT_AMDGPU_METADATA
_KERNEL_INFO = struct.Struct("<iiqii")  # csrc/abi/kernel_info.h
_FRAME_SIZE, _REGISTERS = 0x11, 0x2F  # EIATTR_FRAME_SIZE and EIATTR_REGCOUNT of .nv.info
_CUBIN_ATTRIBUTE = struct.Struct("<BBH")  # form, attribute, bytes that follow
_FORM_BYTES = 4  # EIFMT_SVAL; in other forms the third field is the value itself


@dataclass(frozen=True, slots=True)
class Arch:
    """What occupancy follows from.

    Attributes:
        lanes: threads of a wave.
        simds: schedulers of a compute unit.
        waves: of one scheduler, at most.
        registers: of one lane on one scheduler.
        register_granule: registers are allocated in these.
        lds_bytes: of a compute unit.
        lds_of_workgroup: of one workgroup at most.
        lds_granule: LDS is allocated in these.
        lds_reserved: bytes of a workgroup that the system takes beside it.
        workgroups: of a compute unit, at most.
        lone_waves: likewise where a workgroup is one wave and needs no barrier.
        scalar_registers: of one scheduler; 0 where they do not limit.
    """

    lanes: int
    simds: int
    waves: int
    registers: int
    register_granule: int
    lds_bytes: int
    lds_of_workgroup: int
    lds_granule: int
    lds_reserved: int
    workgroups: int
    lone_waves: int
    scalar_registers: int


_KIB = 1024
ARCHS: Mapping[str, Arch] = {
    "gfx950": Arch(64, 4, 8, 512, 8, 160 * _KIB, 160 * _KIB, 1280, 0, 16, 32, 800),
    "gfx942": Arch(64, 4, 8, 512, 8, 64 * _KIB, 64 * _KIB, 512, 0, 16, 32, 800),
    "sm_90": Arch(32, 4, 16, 512, 8, 228 * _KIB, 227 * _KIB, 128, _KIB, 32, 32, 0),
}


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """One kernel's facts.

    Attributes:
        name: of the registry.
        arch: `gfx950`, `gfx942` or `sm_90`.
        vgprs: vector registers of a lane, without accumulators.
        agprs: accumulator registers; on gfx they share one file with `vgprs`.
        sgprs: scalar registers of a wave.
        spills: registers that are spilled to scratch.
        scratch_bytes: private memory of a lane.
        lds_bytes: group memory of a workgroup.
        kernarg_bytes: of the parameters.
        threads: of a workgroup.
        rows: query rows of a tile; 0 where the kernel has none.
        code_bytes: of the kernel's instructions.
        code: its instructions; none where no disassembler for it is here.
    """

    name: str
    arch: str
    vgprs: int
    agprs: int
    sgprs: int
    spills: int
    scratch_bytes: int
    lds_bytes: int
    kernarg_bytes: int
    threads: int
    rows: int
    code_bytes: int
    code: disassembly.Code = field(default_factory=disassembly.Code)

    @property
    def registers(self) -> int:
        """Vector registers of a lane as they are allocated, accumulators included."""
        granule = ARCHS[self.arch].register_granule
        return -(-(self.vgprs + self.agprs) // granule) * granule

    @property
    def waves(self) -> int:
        """Waves of one workgroup."""
        return -(-self.threads // ARCHS[self.arch].lanes)

    @property
    def workgroups_per_cu(self) -> int:
        """Workgroups that a compute unit holds at once.

        The least of what the waves, the LDS and the hardware's own bound allow:

            waves of a SIMD = min(most waves, 512 // registers [, 800 // sgprs])
            by waves        = SIMDs * waves of a SIMD // waves of a workgroup, where a workgroup
                              puts ceil(waves / SIMDs) on each SIMD it uses
            by LDS          = LDS of the unit // (LDS of the workgroup, in granules)

        Source: LLVM's AMDGPU backend (getNumWavesPerEUWithNumVGPRs, getMaxWorkGroupsPerCU) and
        NVIDIA's CUDA occupancy calculator; register counts are rounded up to the granule.
        """
        arch = ARCHS[self.arch]
        of_simd = min(arch.waves, arch.registers // max(self.registers, arch.register_granule))
        if arch.scalar_registers:
            of_simd = min(of_simd, arch.scalar_registers // max(self.sgprs, 1))
        if self.waves >= arch.simds:
            by_waves = of_simd // -(-self.waves // arch.simds)
        else:
            by_waves = arch.simds * of_simd // self.waves
        lds = -(-(self.lds_bytes + arch.lds_reserved) // arch.lds_granule) * arch.lds_granule
        most = arch.lone_waves if self.waves == 1 else arch.workgroups
        return min(by_waves, arch.lds_bytes // lds if lds else most, most)

    @property
    def waves_per_simd(self) -> float:
        """Waves that a SIMD holds at once, on average over the unit's SIMDs."""
        return self.workgroups_per_cu * self.waves / ARCHS[self.arch].simds


def read_facts(path: Path, name: str, arch: str, symbol: str) -> KernelFacts:
    """Reads a code object (.hsaco) or a cubin.

    Args:
        path: the file.
        name: the kernel's name in the registry.
        arch: one of ARCHS.
        symbol: the kernel's entry.

    Raises:
        FactsError: the file is no such artefact, or `arch` has no facts.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    if arch not in ARCHS:
        raise FactsError(
            f"{name}: expected a target out of {', '.join(ARCHS)}, got {arch}; its artefacts say "
            "nothing about registers, choose one of those"
        )
    try:
        elf = ELFFile(BytesIO(path.read_bytes()))
        read = _read_cubin if arch.startswith("sm_") else _read_code_object
        return read(elf, path, name, arch, symbol)
    except (OSError, ELFError, LookupError, StopIteration, TypeError, ValueError) as error:
        raise FactsError(
            f"{path}: expected an artefact of {name} for {arch}, got {error!r}; delete it and "
            "build it again"
        ) from error


def _read_code_object(elf: Any, path: Path, name: str, arch: str, symbol: str) -> KernelFacts:  # noqa: ANN401
    import msgpack

    notes = (
        note
        for section in elf.iter_sections()
        if section["sh_type"] == "SHT_NOTE"
        for note in section.iter_notes()
    )
    metadata = next(note["n_descdata"] for note in notes if note["n_type"] == _NOTE_METADATA)
    kernels = msgpack.unpackb(metadata)["amdhsa.kernels"]
    kernel = next(entry for entry in kernels if entry[".name"] == symbol)
    _, params_bytes, shared_bytes, threads, rows = _kernel_info(elf)
    code_bytes = _symbol(elf, symbol)["st_size"]
    return KernelFacts(
        name=name,
        arch=arch,
        vgprs=kernel[".vgpr_count"] - kernel[".agpr_count"],
        agprs=kernel[".agpr_count"],
        sgprs=kernel[".sgpr_count"],
        spills=kernel[".vgpr_spill_count"] + kernel[".sgpr_spill_count"],
        scratch_bytes=kernel[".private_segment_fixed_size"],
        lds_bytes=max(kernel[".group_segment_fixed_size"], shared_bytes),
        kernarg_bytes=max(kernel[".kernarg_segment_size"], params_bytes),
        threads=threads,
        rows=rows,
        code_bytes=code_bytes,
        code=disassembly.disassemble(path, arch, symbol, code_bytes),
    )


def _read_cubin(elf: Any, path: Path, name: str, arch: str, symbol: str) -> KernelFacts:  # noqa: ANN401
    text = elf.get_section_by_name(f".text.{symbol}")
    static = elf.get_section_by_name(f".nv.shared.{symbol}")  # with what the system takes
    fixed = static["sh_size"] - ARCHS[arch].lds_reserved if static is not None else 0
    _, params_bytes, shared_bytes, threads, rows = _kernel_info(elf)
    return KernelFacts(
        name=name,
        arch=arch,
        vgprs=_attribute(elf, symbol, _REGISTERS),
        agprs=0,
        sgprs=0,
        spills=0,
        scratch_bytes=_attribute(elf, symbol, _FRAME_SIZE),
        lds_bytes=shared_bytes + max(fixed, 0),
        kernarg_bytes=params_bytes,
        threads=threads,
        rows=rows,
        code_bytes=text["sh_size"],
        code=disassembly.disassemble(path, arch, symbol, text["sh_size"]),
    )


def _attribute(elf: Any, symbol: str, wanted: int) -> int:  # noqa: ANN401
    """One number about the kernel out of a cubin's .nv.info."""
    symbols = elf.get_section_by_name(".symtab")
    data = elf.get_section_by_name(".nv.info").data()
    at = 0
    while at + _CUBIN_ATTRIBUTE.size <= len(data):
        form, attribute, size = _CUBIN_ATTRIBUTE.unpack_from(data, at)
        at += _CUBIN_ATTRIBUTE.size
        if form != _FORM_BYTES:
            continue
        if attribute == wanted:
            index, value = struct.unpack_from("<II", data, at)
            if symbols.get_symbol(index).name == symbol:
                return int(value)
        at += size
    raise LookupError(f"no attribute {wanted:#x} of {symbol} in .nv.info")


def _kernel_info(elf: Any) -> tuple[int, ...]:  # noqa: ANN401
    """The fields of abi::KernelInfo, which every artefact carries."""
    found = _symbol(elf, "hipdecode_kernel_info")
    section = elf.get_section(found["st_shndx"])
    start = found["st_value"] - section["sh_addr"]
    return _KERNEL_INFO.unpack_from(section.data(), start)


def _symbol(elf: Any, name: str) -> Any:  # noqa: ANN401
    for section in elf.iter_sections():
        if section["sh_type"] in ("SHT_SYMTAB", "SHT_DYNSYM"):
            found = section.get_symbol_by_name(name)
            if found:
                return found[0]
    raise LookupError(f"no symbol {name}")
