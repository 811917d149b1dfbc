"""What a framework's model can be told, whichever the framework."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from typing_extensions import Self

from lag_integrations.chat.query import QueryOf
from lag_integrations.engine.quantization.scheme import Quantization
from lag_integrations.engine.segment_placement import Placement
from lag_integrations.memory.loading import MissingSegments
from lag_integrations.memory.memory import LogMemory
from lag_integrations.memory.safe_recall import check_where

if TYPE_CHECKING:  # torch is loaded with a model, not before
    from lag_integrations.engine.engine import Engine

SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)
"""Names of the settings for sampling."""


class ModelSettings(BaseModel):
    """The settings of a model; most of them may be given to a call, too."""

    model_config = ConfigDict(
        extra="forbid", arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    model: str
    """Name or path of the model."""
    base_url: str | None = None
    """URL of a server of ``kvlog serve``, with its ``/v1``: the model runs there, and recalls from
    the memory that is there, which captures its runs, too."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """The key for that server. Without `base_url`, it is taken as other models take one: a model
    here needs none."""
    max_retries: int | None = Field(default=None, ge=0)
    """How often a call of that server is tried again that could not be begun; twice by default. A
    model here needs no retries."""
    memory: LogMemory | None = Field(default=None, exclude=True, repr=False)
    """Where logs are recalled from; without one, an ordinary LLM."""
    k: int | None = Field(default=None, ge=0)
    """Most logs to recall; the memory's own setting by default. 0 is off."""
    min_score: float | None = Field(default=None, ge=-1, le=1)
    """Least similarity of a recalled log; the memory's own setting by default."""
    query: QueryOf | None = Field(default=None, exclude=True, repr=False)
    """What logs are searched by: a text, or a function of the messages that returns one. By default
    the user's last message, or where that recalls nothing, the last two."""
    where: dict[str, Any] | Callable[[Any], Any] | None = Field(
        default=None, exclude=True, repr=False
    )
    """Only logs with such metadata are recalled; or a function that returns such a filter, of the
    call's config in LangChain, of its ``instrument_tags`` in LlamaIndex. If the function fails or
    returns no filter, nothing is recalled."""
    placement: Placement | None = None
    """Where recalled segments stand in the prompt; by default what the model's calibration says,
    ``before_turn`` without one."""
    attention_temperature: float | None = Field(default=None, gt=0)
    """How sharply the model attends to recalled logs. Below 1, it attends more to their last
    responses and less to the steps before, which below 0.9 can hardly be asked for; 1 changes
    nothing. By default what the model's calibration says, 0.9 without one."""
    missing_segments: MissingSegments = "encode"
    """What to do with a recalled log that has no valid segment for this model: encode its trace
    now, or give its last response as text this time (the worker encodes it meanwhile)."""
    best_last: bool = True
    """Whether the most relevant log stands nearest to the question (else farthest)."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens to generate."""
    temperature: float | None = None
    """Sampling temperature; 0 is greedy. By default as the model's generation config says, as for
    the sampling settings that follow."""
    top_p: float | None = None
    """Probability mass to sample from."""
    top_k: int | None = None
    """Number of tokens to sample from."""
    min_p: float | None = None
    """Least probability to sample from, relative to the likeliest token."""
    repetition_penalty: float | None = None
    """Divides the logits of tokens that occurred, in the prompt too."""
    presence_penalty: float | None = None
    """Subtracted from the logits of tokens that were generated."""
    frequency_penalty: float | None = None
    """Subtracted once for each time a token was generated."""
    logit_bias: dict[int, float] | None = None
    """Added to the logits, by token id."""
    seed: int | None = None
    """Seed for sampling."""
    stop: list[str] | None = None
    """Texts that end the answer."""
    logprobs: bool = False
    """Whether to give the log probability of each generated token."""
    top_logprobs: int | None = Field(default=None, ge=0)
    """Alternatives to give with each token's log probability."""
    timeout: float | None = Field(default=None, ge=0)
    """Most seconds from the call until the answer is whole; then `TimeoutError` is raised."""
    cache_salt: str = Field(default="", exclude=True, repr=False)
    """Whose prompts these are, where users share a model. What was read lately is reused under the
    same salt only, so that nobody can tell by the time, or by the tokens reused, what others asked.
    Each memory's namespace has a salt of its own already; this one divides it further."""
    share_system: bool = False
    """Whether the system message and the tools may be reused across namespaces and salts, since
    they hold nothing that is one user's."""
    device: str | None = None
    """Where the model goes; the GPU if there is one, by default."""
    dtype: str = "auto"
    """dtype of the weights; the checkpoint's own by default."""
    quantization: Quantization | None = None
    """On a CPU, how many bits the weights keep: ``int8``, ``int4``, or ``auto``, 4 where nothing is
    lost by it. By default ``auto`` for a GGUF file, else as many as they have."""
    chat_template: str | None = None
    """A Jinja template to use instead of the tokenizer's own."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables for the template: ``{"enable_thinking": False}``."""
    quiet: bool = False
    """Whether to show nothing while the model is loaded; by default there is one progress bar."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict, exclude=True, repr=False)
    """Further arguments of ``from_pretrained``; they may hold a token, so nobody is shown them."""

    @field_validator("where")
    @classmethod
    def _check_where(cls, where: Any) -> Any:
        check_where(where)
        return where

    @model_validator(mode="after")
    def _can_be_sampled(self) -> Self:
        """Refuse now what every call would refuse."""
        if self.base_url is not None:  # its server knows
            return self
        from transformers import GenerationConfig

        from lag_integrations.engine.generation.sampling import Sampling

        Sampling.of(GenerationConfig(), {name: getattr(self, name) for name in SAMPLING})
        return self

    @model_validator(mode="after")
    def _fits_a_remote_model(self) -> Self:
        """Refuse what only has an effect where the model runs."""
        if self.base_url is None:
            return self
        fields = type(self).model_fields
        for name in _HERE:
            default = fields[name].get_default(call_default_factory=True)
            if getattr(self, name) not in (None, default):
                raise ValueError(
                    f"{name}= has no effect on a model at base_url=…; its server decides it."
                )
        return self

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of `Engine.load`."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "quantization": self.quantization,
            "chat_template": self.chat_template,
            "template_kwargs": self.chat_template_kwargs,
            "quiet": self.quiet,
            **self.model_kwargs,
        }


def given_engine(model: Any, tokenizer: Any, settings: Mapping[str, Any]) -> Engine | None:
    """Return the engine of a model that is given loaded; None if it is to be loaded by its name.

    Raises:
        ValueError: A model is given without its tokenizer, or what has one is given another; or
            settings are given that only matter while a model is loaded.
    """
    if isinstance(model, str | Path) and tokenizer is None:
        return None
    from lag_integrations.engine.engine import Engine

    if isinstance(model, str | Path | Engine) and tokenizer is not None:
        raise ValueError("tokenizer= is for a loaded model; any other has its own.")
    if isinstance(model, Engine):
        _refuse(settings, (*_LOADING, *_RENDERING, "model_kwargs"), "an Engine")
        return model
    if tokenizer is None:
        raise ValueError("Pass tokenizer=… together with a loaded model.")
    model_kwargs = settings.get("model_kwargs") or {}
    _refuse(settings, _LOADING, "a loaded model")
    _refuse(model_kwargs, model_kwargs.keys() - {"prefix_cache_bytes"}, "a loaded model")
    return Engine(
        model,
        tokenizer,
        chat_template=settings.get("chat_template"),
        template_kwargs=settings.get("chat_template_kwargs"),
        **model_kwargs,
    )


_LOADING = ("device", "dtype", "quantization", "quiet")
_RENDERING = ("chat_template", "chat_template_kwargs")
_HERE = ("memory", *_LOADING, *_RENDERING, "model_kwargs", "share_system")
"""Settings of models that run in this process."""


def _refuse(settings: Mapping[str, Any], names: Iterable[str], model: str) -> None:
    """Refuse settings that would have no effect."""
    fields = ModelSettings.model_fields
    for name in sorted(names):
        default = fields[name].get_default(call_default_factory=True) if name in fields else None
        if name in settings and settings[name] not in (None, default):
            raise ValueError(
                f"{name}= has no effect on {model}: it is for models that are loaded by their "
                "name. Set it where the model is loaded."
            )
