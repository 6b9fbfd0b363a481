"""The model as clients see it: its names, and its side of text."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pllm.runtime.errors import RequestError
from pllm.runtime.generation_config import GenerationConfig
from pllm.runtime.intake import Intake
from pllm.runtime.message.call_grammar import AnswerGrammar
from pllm.runtime.message.style import MessageStyle
from pllm.runtime.messages import EngineInfo
from pllm.runtime.server.protocol.answers import ModelCard, ModelList
from pllm.runtime.server.protocol.errors import HttpError
from pllm.runtime.server.settings import ServerSettings
from pllm.runtime.structured_outputs import StructuredOutputsParams
from pllm.runtime.tokenizer import Tokenizer

__all__ = ["ServedModel", "TextSide"]

_COMPOSED = 4  # characters that Unicode's composition makes one of, at most


class TextSide:
    """What of an artifact the API process reads: while the engine process opens the rest."""

    def __init__(self, artifact: Path, settings: ServerSettings) -> None:
        self._settings = settings
        chat_template = settings.chat_template
        self._tokenizer = Tokenizer.open(artifact / "tokenizer")
        self._generation = GenerationConfig.open(artifact / "generation.json")
        self._template = None if chat_template is None else self._tokenizer.chosen_template(chat_template)

    @cached_property
    def style(self) -> MessageStyle:
        """How the model writes calls and thoughts: as its template for tools shows, where the operator says nothing."""
        template = self._template or self._tokenizer.chat_template
        shown = MessageStyle.of("\n".join(template.sources.values())) if template else MessageStyle()
        calls, thoughts = self._settings.tool_call_parser, self._settings.reasoning_parser
        if calls != "auto":
            shown = replace(shown, calls=None if calls == "none" else calls)
        return shown if thoughts == "auto" else replace(shown, thinks=thoughts == "think")

    def intake(self, info: EngineInfo) -> Intake:
        """The way in, with the limits of the engine that has been opened."""
        return Intake(
            self._tokenizer,
            self._generation,
            vocab_size=info.vocab_size,
            max_model_len=info.max_model_len,
            chat_template=self._template,
        )


class ServedModel:
    """One model under all its names: the operator's first, then the artifact's own and that of its source.

    ``forms``: what requests may name, of schemas and grammars that the artifact brings along.
    """

    def __init__(
        self,
        intake: Intake,
        info: EngineInfo,
        style: MessageStyle,
        *,
        served_names: tuple[str, ...],
        created: int,
        forms: Mapping[str, StructuredOutputsParams],
    ) -> None:
        self.style = style
        self.forms = forms
        self.intake = intake
        self.info = info
        self.names = tuple(dict.fromkeys((*served_names, info.model_name, info.model_source)))
        cards = tuple(
            ModelCard(id=name, created=created, root=info.model_source, max_model_len=info.max_model_len)
            for name in self.names
        )
        self.models = ModelList(data=cards)

    def check_size(self, characters: int, param: str) -> None:
        """Refuses a text that cannot fit the context however it is tokenised, before that costs seconds.

        Raises RequestError. No token stands for more characters than the longest one is spelled with; normalisation
        may have made one of up to four (one that drops characters altogether is not what language models have).
        """
        limit = self.info.max_model_len
        if characters <= limit:
            return
        at_least = characters // (_COMPOSED * self._longest_token) + 1
        if at_least > limit:
            raise RequestError(
                f"This model's maximum context length is {limit} tokens. However, your prompt contains more than "
                f"{at_least} input tokens ({characters} characters).",
                param=param,
                code="context_length_exceeded",
            )

    @cached_property
    def answer_grammar(self) -> AnswerGrammar:
        """Writes grammars of answers in the model's style."""
        tokenizer = self.intake.tokenizer
        ends = frozenset(self.intake.eos_token_ids)

        def added_id(text: str) -> int | None:
            token_id = tokenizer.token_to_id(text)
            return token_id if token_id in tokenizer.added_ids else None

        return AnswerGrammar(self.style, added_id, tokenizer.added_ids - ends)

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.intake.tokenizer.get_vocab()))

    @property
    def name(self) -> str:
        """The name in answers to requests that gave none."""
        return self.names[0]

    def card(self, name: str) -> ModelCard:
        """The description of one name. Raises HttpError 404."""
        return next(card for card in self.models.data if card.id == self.name_for(name))

    def name_for(self, requested: str | None) -> str:
        """The name to answer under: the one that was asked for. Raises HttpError 404 for a name that is not served."""
        if not requested:
            return self.name
        if requested not in self.names:
            raise HttpError(
                404,
                f"The model {requested[:256]!r} does not exist here. This server serves: {', '.join(self.names)}.",
                param="model",
                code="model_not_found",
            )
        return requested
