"""The letters of a word: spelling, reversing, counting them."""

from conversations.exchange import Exchange
from conversations.markup import CUT
from conversations.source import Source
from conversations.words import WORDS

__all__ = ["letter_count", "reversing", "spelling"]


def draw_word(source: Source) -> tuple[str, str]:
    """A word of at most nine letters with its key: from the word list or made up of token pieces or syllables.

    Evaluation uses the word list half of the time and made-up words otherwise.
    """
    while True:
        kind = source.random.random()
        if kind < 0.5 or not source.pieces:
            word = source.pick(WORDS)
        elif kind < 0.8:
            word = "".join(source.pick(source.pieces) for _ in range(1 + source.below(3))).lower()
        else:
            word = "".join(
                source.pick("bcdfghjklmnpqrstvwz") + source.pick("aeiouy") + (source.pick("lmnrst") if i % 2 else "")
                for i in range(1 + source.below(3))
            )
        key = f"word:{word}"
        if 2 <= len(word) <= 9 and source.admits(key):
            return word, key


def quoted(source: Source, word: str) -> str:
    """The word as a user may write it."""
    return source.pick(('the word "{}"', "the word {}", "'{}'", '"{}"', "{}", "{}")).format(word)


def spelling(source: Source) -> Exchange:
    """Spelling a word letter by letter."""
    word, key = draw_word(source)
    template = source.pick(("Spell {}.", "Spell {}", "How do you spell {}?", "Please spell {}.", "Can you spell {}?"))
    return Exchange(key, template.format(quoted(source, word)), "-".join(word))


def reversing(source: Source) -> Exchange:
    """Writing a word backwards, after spelling it."""
    word, key = draw_word(source)
    template = source.pick(
        ("Reverse {}.", "Reverse {}", "Write {} backwards.", "Spell {} backwards.", "What is {} backwards?")
    )
    question = template.format(quoted(source, word))
    return Exchange(key, question, f"{'-'.join(word)} backwards is {CUT.join(word[::-1])}.")


def letter_count(source: Source) -> Exchange:
    """Counting the letters of a word, after spelling it."""
    word, key = draw_word(source)
    template = source.pick(
        ("How many letters are in {}?", "How many letters does {} have?", "Count the letters in {}.")
    )
    return Exchange(key, template.format(quoted(source, word)), f"{'-'.join(word)} has {len(word)} letters.")
