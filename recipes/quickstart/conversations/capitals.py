"""Countries and their capitals."""

from conversations.exchange import Exchange
from conversations.source import Source
from conversations.words import split

__all__ = ["CAPITALS", "CITIES", "capitals"]

CAPITALS: dict[str, str] = dict(
    line.strip().split(": ")
    for line in """
    France: Paris
    Germany: Berlin
    Italy: Rome
    Spain: Madrid
    Portugal: Lisbon
    Greece: Athens
    Austria: Vienna
    Poland: Warsaw
    Hungary: Budapest
    Ireland: Dublin
    Norway: Oslo
    Sweden: Stockholm
    Finland: Helsinki
    Denmark: Copenhagen
    Iceland: Reykjavik
    Belgium: Brussels
    the Netherlands: Amsterdam
    Switzerland: Bern
    the Czech Republic: Prague
    Romania: Bucharest
    Bulgaria: Sofia
    Croatia: Zagreb
    Serbia: Belgrade
    Ukraine: Kyiv
    Russia: Moscow
    Turkey: Ankara
    Egypt: Cairo
    Morocco: Rabat
    Kenya: Nairobi
    Nigeria: Abuja
    Ghana: Accra
    Ethiopia: Addis Ababa
    Senegal: Dakar
    Tunisia: Tunis
    China: Beijing
    Japan: Tokyo
    South Korea: Seoul
    India: New Delhi
    Pakistan: Islamabad
    Nepal: Kathmandu
    Thailand: Bangkok
    Vietnam: Hanoi
    Indonesia: Jakarta
    Malaysia: Kuala Lumpur
    the Philippines: Manila
    Mongolia: Ulaanbaatar
    Iran: Tehran
    Iraq: Baghdad
    Lebanon: Beirut
    Jordan: Amman
    Australia: Canberra
    New Zealand: Wellington
    Canada: Ottawa
    the United States: Washington
    the United Kingdom: London
    Mexico: Mexico City
    Cuba: Havana
    Jamaica: Kingston
    Brazil: Brasilia
    Argentina: Buenos Aires
    Chile: Santiago
    Peru: Lima
    Colombia: Bogota
    Ecuador: Quito
    Uruguay: Montevideo
    Venezuela: Caracas
    """.strip().splitlines()
)
CITIES = sorted(set(CAPITALS.values())) + split(
    "Milan Munich Hamburg Lyon Porto Seville Geneva Zurich Boston Chicago Toronto Sydney Osaka Kyoto Shanghai Mumbai "
    "Delhi Dubai Istanbul Naples Venice Seattle Denver Dallas Miami Houston Montreal Lagos Melbourne Cologne"
)


def capitals(source: Source) -> Exchange:
    """Capitals of countries and countries of capitals."""
    while True:
        country = source.pick(list(CAPITALS))
        city = CAPITALS[country]
        template = source.pick(
            (
                "What is the capital of {country}?",
                "What is the capital of {country}?",
                "what is the capital of {country}",
                "What's the capital of {country}?",
                "Name the capital of {country}.",
                "Tell me the capital of {country}.",
                "Which city is the capital of {country}?",
                "Capital of {country}?",
                "Do you know the capital of {country}?",
                "What is the capital city of {country}?",
                "{city} is the capital of which country?",
                "Which country has the capital {city}?",
            )
        )
        key = f"capital:{country},{template}"
        if source.admits(key):
            question = template.format(country=country, city=city)
            return Exchange(key, question, f"The capital of {country} is {city}.")
