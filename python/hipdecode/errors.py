# SPDX-License-Identifier: MIT
"""Every exception that hipdecode raises. Messages read `subject: expected X, got Y; do Z`."""


class HipdecodeError(Exception):
    """Base of every error of this package."""


class BadArgument(HipdecodeError, ValueError):
    """An argument has a shape, dtype, device or value that the call does not take."""


class UnsupportedShape(BadArgument):
    """No kernel serves this combination of head counts, head dimensions and dtypes."""


class WorkspaceError(BadArgument):
    """A caller's workspace is too small, of another device, or in use."""


class RegistryError(HipdecodeError):
    """configs/modules.json is wrong, or does not hold what was asked for."""


class BuildError(HipdecodeError, RuntimeError):
    """A kernel or the binding could not be built, or building was forbidden."""


class CacheError(BuildError):
    """The cache folder cannot be read, written or locked, or its disk is full."""


class ToolchainError(BuildError):
    """No compiler was found, or it cannot be started."""


class NotWarmed(HipdecodeError, RuntimeError):
    """A kernel would have to be built or loaded where that is not possible (graph capture)."""


class TableError(HipdecodeError, ValueError):
    """A dispatch table cannot be read, or its rows leave gaps or overlap."""


class SimulatorError(HipdecodeError, RuntimeError):
    """The simulator refuses a code object or a launch, or a check failed while it ran."""


class FactsError(HipdecodeError):
    """An artefact's facts cannot be read."""


class BudgetError(HipdecodeError):
    """A kernel takes more registers, memory or code than configs/budgets.json grants."""


class TargetError(HipdecodeError, ValueError):
    """The target name is unknown, or this machine cannot run it."""
