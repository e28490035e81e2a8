# SPDX-License-Identifier: MIT
"""SGLang's `--attention-backend hipdecode`.

SGLang calls `register` in each of its processes through the entry-point group `sglang.srt.plugins`
of the installed package, before it parses its options:

    python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --trust-remote-code \\
        --tp-size 8 --attention-backend hipdecode

MLA decode, speculative verification and draft extension run on hipdecode, prefill on SGLang's
`triton` backend (`torch_native` on a CPU; the log says which). Another one is chosen by
`--prefill-attention-backend NAME --decode-attention-backend hipdecode`. Nothing here imports SGLang
until it is called; written for SGLang 0.5.23.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

import torch

from hipdecode import target
from hipdecode.errors import HipdecodeError

NAME = "hipdecode"

ALSO_IMPORTED = {
    "aiter": (
        "flash_attn_varlen_fp8_pertensor_func",
        "flash_attn_varlen_func",
        "get_ps_metadata_info_v1",
        "get_ps_metadata_v1",
        "mha_batch_prefill_func",
        "mla_prefill_ps_asm_fwd",
        "paged_attention_ragged",
    ),
    "aiter.mla": ("mla_prefill_fwd",),
    "aiter.ops.triton.attention.unified_attention": ("unified_attention",),
}
"""What SGLang's `aiter` backend imports in one statement with the decode entries, and not from us.

SGLang gives up all of AITER's names where one of these is missing.
"""

logger = logging.getLogger("hipdecode.sglang")


class NotInHipdecode(HipdecodeError, NotImplementedError):
    """A name of AITER's that is not a decode entry was called."""


def register() -> None:
    """Makes `hipdecode` an attention backend of this process; again changes nothing.

    Raises:
        ImportError: SGLang is not installed.
    """
    choices = importlib.import_module("sglang.srt.arg_groups.choices")
    registry = importlib.import_module("sglang.srt.layers.attention.attention_registry")
    hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
    if NAME in registry.ATTENTION_BACKENDS:
        return
    if NAME not in choices.ATTENTION_BACKEND_CHOICES:
        choices.add_attention_backend_choices([NAME])
        choices.add_deterministic_attention_backend_choices([NAME])
    registry.register_attention_backend(NAME)(create_backend)
    factory = "sglang.srt.speculative.draft_utils.DraftBackendFactory._create_backend"
    hooks.HookRegistry.register(factory, _create_draft_backend, hooks.HookType.AROUND)


def create_backend(runner: Any) -> Any:  # noqa: ANN401
    """The backend of a `ModelRunner`, as SGLang's registry asks for it.

    Raises:
        BadArgument: the runner is configured for what is not done; names SGLang's option.
    """
    module = importlib.import_module("hipdecode.integrations.sglang.backend")
    backend = module.HipdecodeAttnBackend(runner)
    _tell_models(backend.device.type == "cuda", backend.deal.ranks > 1, runner.model_config)
    return backend


def _tell_models(on_gpu: bool, shares_keys: bool, model_config: Any) -> None:  # noqa: ANN401
    """SGLang's MLA models know by names alone what a backend takes and returns."""
    if not (on_gpu or shares_keys):
        return
    utils = importlib.import_module("sglang.srt.models.deepseek_common.utils")
    folder = "sglang.srt.models.deepseek_common.attention_forward_methods"
    if torch.version.hip is not None:
        target = f"{folder}.forward_mla_rocm"
    else:
        target = f"{folder}.forward_mla"
        names = utils.FORWARD_ABSORB_CORE_ATTENTION_BACKENDS
        # Queries and keys come in parts: one launch of ours takes them, two of torch's join them.
        # The models scale queries of this kind only where they join them.
        if not scales_queries(model_config) and NAME not in names:
            names.append(NAME)
    if shares_keys and target not in _told:
        _told.add(target)
        hooks = importlib.import_module("sglang.srt.plugins.hook_registry")
        name = f"{target}.is_mla_dcp_lse_base_on_e"
        hooks.HookRegistry.register(name, _is_natural, hooks.HookType.AROUND)
        hooks.HookRegistry.apply_hooks()


def scales_queries(model_config: Any) -> bool:  # noqa: ANN401
    """Whether the model scales queries by their position, as Mistral Large 3 does."""
    return getattr(model_config.hf_text_config, "llama_4_scaling", None) is not None


_told: set[str] = set()


def _is_natural(original: Callable[[str | None], bool], attention_backend: str | None) -> bool:
    """Our log-sum-exp is natural, as that of the backends that SGLang lists itself."""
    return attention_backend == NAME or original(attention_backend)


def complete_aiter() -> tuple[str, ...]:
    """After `hipdecode.install_as_aiter()`: lets SGLang's `aiter` backend find all it imports.

    That backend, for `--decode-attention-backend aiter`, imports prefill entries beside those of
    decode. Where AITER is not installed they are registered as functions that say so when they are
    called: choose another `--prefill-attention-backend`. Call it before the backend is imported.

    Returns:
        The full names of the functions that refuse; none where AITER itself is installed.
    """
    spec = None if "aiter" not in sys.modules else sys.modules["aiter"].__spec__
    if spec is None or spec.loader is not None:
        return ()
    names = []
    for home, functions in ALSO_IMPORTED.items():
        module = _module(home)
        for name in functions:
            setattr(module, name, _refusing(f"{home}.{name}"))
            names.append(f"{home}.{name}")
    vars(_module("aiter.ops.triton.utils._triton.kernel_repr"))["make_kernel_repr"] = _kernel_name
    vars(_module("aiter.ops.triton.utils.types"))["e4m3_dtype"] = _e4m3()
    return tuple(names)


def _kernel_name(base_name: str, *_: object) -> Callable[[object], str]:
    """AITER's way to name a Triton kernel, which SGLang's own kernels use; here without values."""
    return lambda _: base_name


def _e4m3() -> torch.dtype:
    """The e4m3 of the GPU, as AITER says it: gfx942 has a kind of its own."""
    arches = {gpu.arch for gpu in target.gpus()}
    return torch.float8_e4m3fnuz if "gfx942" in arches else torch.float8_e4m3fn


def _module(name: str) -> ModuleType:
    """A module of that name and its packages, new ones where there are none."""
    if name in sys.modules:
        return sys.modules[name]
    package, _, own = name.rpartition(".")
    parent = _module(package)
    module = ModuleType(name, "AITER's name; hipdecode has nothing here.")
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    sys.modules[name] = module
    setattr(parent, own, module)
    return module


def _refusing(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise NotInHipdecode(
            f"{name}: expected a decode entry, got one that hipdecode does not have; install AITER "
            "or choose another --prefill-attention-backend"
        )

    refuse.__name__ = refuse.__qualname__ = name.rpartition(".")[2]
    return refuse


def _create_draft_backend(
    original: Callable[..., Any],
    factory: Any,  # noqa: ANN401
    backend_name: str,
    backend_map: dict[str, Callable[[], Any]],
    *args: object,
    **kwargs: object,
) -> Any:  # noqa: ANN401
    """Adds hipdecode to the backends of draft models, whose names SGLang lists itself.

    The steps of a draft (`decode_attention_backend`) share a container that is each backend's
    own: they are left to SGLang's `triton`. Its extension is one batch of a few rows a request.
    """
    if kwargs.get("stamps_children"):
        ours = backend_map["triton"]
        logger.info("the draft model's own decode steps run on SGLang's triton backend")
    else:

        def ours() -> tuple[str, Any]:
            return NAME, create_backend(factory.draft_model_runner)

    return original(factory, backend_name, {**backend_map, NAME: ours}, *args, **kwargs)
