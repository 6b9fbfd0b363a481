"""A response's output while it grows: its items, and the event for each step of their growth."""

from collections.abc import Iterator

from pllm.runtime.server.identity import new_id
from pllm.runtime.server.protocol.answers import TokenLogprob
from pllm.runtime.server.protocol.response_answers import (
    ArgumentsDelta,
    ArgumentsDone,
    FunctionCallItem,
    Item,
    ItemEvent,
    MessageItem,
    OutputText,
    PartEvent,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    Status,
    TextDeltaEvent,
    TextDone,
    TypedEvent,
)

__all__ = ["ResponseItems"]


class ResponseItems:
    """Items come one after another, as the model writes them: only the last one grows.

    Each call gives the events that tell a client of it, numbered through; a response that is not streamed drops them.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.num_events = 0
        self._open = False  # whether the last item still grows

    def number(self) -> int:
        """The next event's sequence number."""
        self.num_events += 1
        return self.num_events - 1

    def add_reasoning(self, text: str) -> Iterator[TypedEvent]:
        """The model thinks."""
        item = self._last()
        if not isinstance(item, ReasoningItem):
            yield from self.finish("completed")
            item = ReasoningItem(id=new_id("rs"))
            yield from self._begin(item)
            item.content.append(ReasoningText(text=""))
            yield self._part("added", item.id, ReasoningText(text=""))
        item.content[0].text += text
        yield ReasoningDelta(
            type="response.reasoning_text.delta",
            sequence_number=self.number(),
            item_id=item.id,
            output_index=self._index,
            content_index=0,
            delta=text,
        )

    def add_text(self, text: str, logprobs: list[TokenLogprob]) -> Iterator[TypedEvent]:
        """The model says something; nothing new yet begins a message too."""
        item = self._last()
        if not isinstance(item, MessageItem):
            yield from self.finish("completed")
            item = MessageItem(id=new_id("msg"))
            yield from self._begin(item)
            item.content.append(OutputText(text=""))
            yield self._part("added", item.id, OutputText(text=""))
        if not text and not logprobs:
            return
        part = item.content[0]
        part.text += text
        part.logprobs += logprobs
        yield TextDeltaEvent(
            type="response.output_text.delta",
            sequence_number=self.number(),
            item_id=item.id,
            output_index=self._index,
            content_index=0,
            delta=text,
            logprobs=logprobs,
        )

    def begin_call(self, call_id: str, name: str) -> Iterator[TypedEvent]:
        """The model begins a call."""
        yield from self.finish("completed")
        yield from self._begin(FunctionCallItem(id=new_id("fc"), call_id=call_id, name=name))

    def add_arguments(self, text: str) -> Iterator[TypedEvent]:
        """The call that it has begun goes on."""
        item = self._last()
        assert isinstance(item, FunctionCallItem)
        item.arguments += text
        yield ArgumentsDelta(
            type="response.function_call_arguments.delta",
            sequence_number=self.number(),
            item_id=item.id,
            output_index=self._index,
            delta=text,
        )

    def finish(self, status: Status) -> Iterator[TypedEvent]:
        """The last item, if one grows, is complete, or has to end as it is."""
        if not self._open:
            return
        item = self.items[-1]
        match item:
            case MessageItem(content=[text]):
                yield TextDone(
                    type="response.output_text.done",
                    sequence_number=self.number(),
                    item_id=item.id,
                    output_index=self._index,
                    content_index=0,
                    text=text.text,
                    logprobs=text.logprobs,
                )
                yield self._part("done", item.id, text)
            case ReasoningItem(content=[thought]):
                yield ReasoningDone(
                    type="response.reasoning_text.done",
                    sequence_number=self.number(),
                    item_id=item.id,
                    output_index=self._index,
                    content_index=0,
                    text=thought.text,
                )
                yield self._part("done", item.id, thought)
            case FunctionCallItem():
                yield ArgumentsDone(
                    type="response.function_call_arguments.done",
                    sequence_number=self.number(),
                    item_id=item.id,
                    output_index=self._index,
                    name=item.name,
                    arguments=item.arguments,
                )
        item.status = status
        self._open = False
        yield self._item("done", item)

    @property
    def _index(self) -> int:
        return len(self.items) - 1

    def _last(self) -> Item | None:
        return self.items[-1] if self._open else None

    def _begin(self, item: Item) -> Iterator[TypedEvent]:
        self.items.append(item)
        self._open = True
        yield self._item("added", item)

    def _item(self, what: str, item: Item) -> ItemEvent:
        return ItemEvent(
            type=f"response.output_item.{what}", sequence_number=self.number(), output_index=self._index, item=item
        )

    def _part(self, what: str, item_id: str, part: OutputText | ReasoningText) -> PartEvent:
        return PartEvent(
            type=f"response.content_part.{what}",
            sequence_number=self.number(),
            item_id=item_id,
            output_index=self._index,
            content_index=0,
            part=part,
        )
