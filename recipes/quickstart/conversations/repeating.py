"""Saying what one is asked to say."""

from conversations.exchange import Exchange
from conversations.source import Source
from conversations.words import WORDS

__all__ = ["repeat"]


def repeat(source: Source) -> Exchange:
    """Repeating a few words."""
    while True:
        words = [source.pick(WORDS) for _ in range(2 + source.below(3))]
        key = f"repeat:{words[0]},{words[1]}"
        if source.admits(key):
            break
    text = " ".join(words)
    template = source.pick(("Repeat after me: {}", "Say: {}", "Repeat: {}", 'Say "{}"', "Repeat this: {}"))
    return Exchange(key, template.format(text), text)
