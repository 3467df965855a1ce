"""What a user asks of a replay, beside model and device. Light: no torch."""

from dataclasses import dataclass, replace

from kvdelta.harness.options import Options
from kvdelta.schemes.errors import UserError


@dataclass(frozen=True)
class ReplayOptions:
    """prompts: a text, a file, JSON lines or a data set (harness.replaying.prompts); None is the packaged text. Lengths in
    tokens: every prompt is cut to `prompt_length`, and `tokens` next tokens are scored. step: tokens per forward. greedy,
    temperature, top_p: how the text is sampled; without them as the model's generation config says, or from its
    distribution as it is. free_run: each scheme also writes a text of its own. sampled: a replay of the same prompts, model and
    sampling, whose text is taken instead of sampling again."""

    prompts: str | None = None
    prompt_count: int = 4
    prompt_length: int = 256
    tokens: int = 64
    step: int = 1
    greedy: bool = False
    temperature: float | None = None
    top_p: float | None = None
    free_run: bool = False
    sampled: str | None = None

    def __post_init__(self) -> None:
        if self.prompt_count < 1:
            raise UserError(f"{self.prompt_count} prompts: the model needs one to go on from; give --prompt-count 4")
        if self.prompt_length < 1:
            raise UserError(f"prompts of {self.prompt_length} tokens fill no cache; give --prompt-length 256")
        if self.tokens < 1:
            raise UserError(f"{self.tokens} tokens after each prompt leave nothing to score; give --tokens 64")
        if self.step < 1:
            raise UserError(f"step is {self.step}: 1 token or more goes into a forward; give --step 1")
        if self.greedy and (self.temperature is not None or self.top_p is not None):
            raise UserError("greedy takes the likeliest token, so temperature and top_p do nothing: leave them out")
        if self.temperature is not None and not 0 < self.temperature < float("inf"):
            raise UserError(f"temperature is {self.temperature:g}: give one above 0, or --greedy")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p:g}: give a share above 0 and up to 1, such as 0.9")

    @property
    def length(self) -> int:
        """Of a prompt and what follows it. One token more than is scored: the first is predicted by the prompt's exact
        logits, the same for every scheme."""
        return self.prompt_length + self.tokens + 1

    def windows(self, options: Options) -> Options:
        """A prompt is a prefix, what the model wrote after it the suffix."""
        return replace(
            options,
            windows=self.prompt_count,
            window_length=self.length,
            score_length=self.tokens + 1,
            stride=self.length,
            protocol="stepwise",
            step=self.step,
        )
