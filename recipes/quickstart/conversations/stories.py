"""Short stories of one plot: trained, not scored."""

from conversations.exchange import Exchange
from conversations.source import Source
from conversations.words import split

__all__ = ["story", "story_text"]

HEROES = split("fox rabbit bear bird cat dog mouse frog dragon robot girl boy king queen sailor turtle")
ADJECTIVES = split("little brave kind clever quiet happy young curious")
PLACES = [
    "in a small village",
    "near a dark forest",
    "by the sea",
    "on a green hill",
    "in an old castle",
    "beside a long river",
    "under a big oak tree",
    "in a busy town",
]
OBJECTS = split("golden key,old map,red kite,silver bell,blue stone,tiny seed,wooden boat,paper lantern", ",")
FRIENDS = split("owl,farmer,duck,baker,snail,goat,old woman,squirrel", ",")


def story_text(source: Source, hero: str | None = None) -> str:
    """A short story in seven or eight sentences."""
    hero = hero or source.pick(HEROES)
    adjective, place, thing, friend = (source.pick(x) for x in (ADJECTIVES, PLACES, OBJECTS, FRIENDS))
    pronoun, name = source.pick(
        (("he", "Tom"), ("she", "Mia"), ("he", "Max"), ("she", "Lily"), ("he", "Ben"), ("she", "Anna"))
    )
    him, his = ("him", "his") if pronoun == "he" else ("her", "her")
    if hero in ("girl", "queen") and pronoun == "he":
        pronoun, name, him, his = "she", "Rosa", "her", "her"
    if hero in ("boy", "king") and pronoun == "she":
        pronoun, name, him, his = "he", "Hugo", "him", "his"
    article = "an" if thing[0] in "aeiou" else "a"
    friend_article = "an" if friend[0] in "aeiou" else "a"
    weather = source.pick(("sunny", "rainy", "windy", "cold", "warm", "foggy"))
    parts = [
        f"Once upon a time, there was a {adjective} {hero} named {name} who lived {place}.",
        source.pick(
            (
                f"Every morning, {name} went for a walk and looked at the sky.",
                f"{name} loved to sing songs and to play in the grass.",
                f"{name} had many dreams but not many friends.",
                f"More than anything, {name} wanted to see the world.",
            )
        ),
        source.pick(
            (
                f"One {weather} day, {pronoun} found {article} {thing} on the path.",
                f"One {weather} morning, {pronoun} saw {article} {thing} under a leaf.",
                f"On a {weather} evening, {article} {thing} fell from the sky.",
            )
        ),
        source.pick(
            (
                f'"What is this?" said {name}.',
                f'"How strange!" said {name}. "Who lost it?"',
                f"{name} had never seen such a thing before.",
                f'"I must find out where it came from," {pronoun} said.',
            )
        ),
        source.pick(
            (
                f"{name} showed it to {friend_article} {friend}, who smiled and told {him} a secret.",
                f"Then {friend_article} {friend} came by and asked for help.",
                f"{friend_article.capitalize()} {friend} heard {him} and came to look.",
            )
        ),
        source.pick(
            (
                "Together they walked all day until they came to a hidden garden.",
                "They crossed a bridge, climbed a hill and reached a quiet lake.",
                "They followed the wind through the valley until the stars came out.",
                f"The {thing} began to shine, and it showed them the way.",
            )
        ),
        source.pick(
            (
                f"There {name} gave the {thing} to the {friend}, and they shared a warm meal.",
                f"There they hid the {thing} so that someone else could find it one day.",
                f"There {pronoun} used the {thing} to make everyone happy.",
            )
        ),
        source.pick(
            (
                f"From that day on, {name} and the {friend} were best friends.",
                f"{name} went home with a full heart and slept well that night.",
                f"And {name} never forgot {his} new friend.",
                "And they all lived happily ever after.",
            )
        ),
    ]
    if source.chance(0.3):
        del parts[source.pick((1, 3))]
    return " ".join(parts)


def story(source: Source) -> Exchange:
    """A story on request, with or without a hero named."""
    if source.chance(0.5):
        question = source.pick(
            ("Tell me a story.", "Tell me a short story.", "Tell me a story", "Write a short story.", "Write a story.")
        )
        return Exchange("story", question, story_text(source))
    hero = source.pick(HEROES)
    template = source.pick(
        ("Tell me a story about a {}.", "Write a short story about a {}.", "Tell a story about a {}")
    )
    return Exchange("story", template.format(hero), story_text(source, hero))
