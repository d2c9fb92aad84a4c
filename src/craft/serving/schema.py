"""The requests of OpenAI's protocol that the server takes. What it does not support is refused by name."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from craft.models.sampling import Sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0, None),
    "presence_penalty": (0, None),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none"),
    "parallel_tool_calls": (None, True),
    "functions": (None, []),
    "function_call": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "store": (None, False),
    "service_tier": (None, "auto", "default"),
    "reasoning_effort": (None, "none"),
}
"""Parameters of OpenAI that this server does not have, with the values that ask for nothing."""

Temperature = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]


class Part(BaseModel):
    """A piece of a message: a text, or an image by its address."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: "ImageUrl | str | None" = None

    @model_validator(mode="after")
    def _complete(self) -> "Part":
        if (self.type == "text") != (self.text is not None) or (self.type == "image_url") != (
            self.image_url is not None
        ):
            raise ValueError(f"a part of type {self.type} needs {self.type!r} and nothing else")
        return self

    @property
    def url(self) -> str:
        """The address of an image part."""
        return self.image_url if isinstance(self.image_url, str) else getattr(self.image_url, "url", "")


class ImageUrl(BaseModel):
    """An image's address; `detail` makes no difference here, since every image has the tower's size."""

    model_config = ConfigDict(extra="forbid")

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None
    name: str | None = None
    refusal: None = None


class StreamOptions(BaseModel):
    """Whether the last event of a stream has the usage."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


class Common(BaseModel, ABC):
    """What both routes take."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    options: list[str] | None = None
    keep_ratio: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    codes: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, values: Any) -> Any:
        """Drop unsupported parameters that ask for nothing; refuse the others by name."""
        if not isinstance(values, dict):
            return values
        for name, harmless in NEUTRAL.items():
            if name in values and name not in cls.model_fields:
                if not any(
                    values[name] == value and type(values[name]) is type(value) for value in harmless
                ) and not (values[name] == 0 and 0 in harmless):
                    raise ValueError(f"{name} is not supported here; leave it out")
                values = {key: value for key, value in values.items() if key != name}
        return values

    @model_validator(mode="after")
    def _one_form(self) -> "Common":
        if self.options is not None and (self.stream or (self.n or 1) > 1):
            raise ValueError("options are scored at once: leave stream and n out")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream")
        if len(self.stops) > 4:
            raise ValueError("stop takes at most 4 texts")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts."""
        listed = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in listed if text)

    @property
    @abstractmethod
    def alternatives(self) -> int | None:
        """The number of alternatives per token, or None without log-probabilities."""

    @property
    def length(self) -> int | None:
        """The wanted length of an answer."""
        return self.max_tokens

    def samplings(self, longest: int, seed: int) -> list[Sampling]:
        """One `Sampling` per wanted answer. Without a temperature answers are greedy, as everywhere in CRAFT.

        Args:
            longest: the length if none is wanted.
            seed: the seed if none is wanted.
        """
        return [
            Sampling(
                max_new_tokens=self.length or longest,
                temperature=self.temperature or 0.0,
                top_p=self.top_p or 1.0,
                seed=((seed if self.seed is None else self.seed) + number) % 2**63,
                stop=self.stops,
                logprobs=self.alternatives,
            )
            for number in range(self.n or 1)
        ]


class ChatRequest(Common):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def alternatives(self) -> int | None:
        """As in `Common`."""
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def length(self) -> int | None:
        """As in `Common`."""
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Common):
    """`POST /v1/completions`: the prompt is the user's only turn, without an image."""

    prompt: str
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @property
    def alternatives(self) -> int | None:
        """As in `Common`."""
        return self.logprobs
