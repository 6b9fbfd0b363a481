"""Words that several skills draw from."""

__all__ = ["NAMES", "WORDS", "split"]


def split(text: str, separator: str | None = None) -> list[str]:
    """The items of a list written as one string."""
    return text.split(separator)


NAMES = split(
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Tom Uma Victor "
    "Wendy Max Lily Omar Sara Ali Mei Hugo Nina Oscar Lucy Peter Julia Maria John Alice Bob Carol Eva Frank Laura "
    "Mark"
)
WORDS = split(
    "cat dog sun hat pen cup map box bus car key egg ant bee cow pig fox hen owl bat rat jar jam net sea sky ice "
    "bed toy log mud nut oak pie rug tea van web zoo arm ear eye leg lip toe bag bell bird boat book bone bowl cake "
    "camp card cave city clay coat coin corn crab crow desk door drum duck dust farm fish flag fork frog game gate "
    "gift gold goat hand hill home horn idea iron king kite lake lamb lamp leaf lion milk mint moon moss nest nose "
    "note park path pear pond pool rain ring road rock roof room root rope rose sail salt sand seed ship shoe shop "
    "silk snow soap song soup star stem swan tail tent tree vase wall wave wind wing wolf wood wool yard apple "
    "bread brick brush candy chair chalk cheese clock cloud coast cream crown dance dream dress earth field flame "
    "flour fruit ghost glass grape grass green happy heart honey horse house juice knife lemon light metal money "
    "month mouse music night ocean onion paint paper peach pearl phone piano pilot plane plant plate queen quick "
    "quiet radio river robot salad sheep shell shirt silver smile snake spoon stone storm story sugar table tiger "
    "toast tooth tower train truck watch water whale wheel white world animal basket bottle branch bridge bright "
    "butter button camera candle carpet carrot castle cherry circle coffee copper corner cotton dinner doctor "
    "dragon engine family farmer father finger flower forest friend garden ginger guitar hammer island jacket "
    "kettle kitten ladder letter lizard market mirror monkey mother number orange pencil pepper pillow planet "
    "pocket potato puppet rabbit rocket saddle school screen season shadow spider spring square stream street "
    "summer sunset temple ticket tomato tunnel turtle valley violin walnut window winter wizard yellow zebra "
    "balloon banana blanket cabbage captain chicken compass cricket dolphin feather giraffe harvest journey kitchen "
    "library machine morning penguin picture pumpkin rainbow sailor teacher thunder tractor village volcano whisper "
    "hello python model token cache layer kernel vector"
)
