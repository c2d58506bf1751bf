"""Random values and names for the retrieval records: word lists, and a pattern language."""

from __future__ import annotations

import random
import string


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def phrases(text: str, separator: str = ", ") -> tuple[str, ...]:
    return tuple(text.split(separator))


FIRST_NAMES = words(
    "Ada Albert Alice Amir Anna Arthur Bela Bruno Carla Cecil Clara Conrad Dora Edgar Edith Elif Emil "
    "Erika Eva Felix Flora Frida Georg Gloria Greta Hanna Hector Hugo Ida Igor Ines Iris Ivan Jakob Jonas "
    "Judith Julia Karl Klara Lars Laura Leon Lydia Magda Malik Marta Max Mila Mona Nadia Nils Nora Olga "
    "Omar Oscar Otto Paula Pedro Petra Rafael Rita Rosa Ruth Samir Sara Selma Simon Sofia Sven Tara "
    "Tobias Ursula Vera Viktor Wanda Yusuf Zoe"
)
SURNAMES = words(
    "Abbot Ackland Baker Barlow Becker Bishop Brandt Carter Castle Cooper Dalton Dietrich Draper Ebert "
    "Ellis Farrow Fischer Fletcher Garner Gibbs Hale Hansen Harper Holt Ivers Jansen Keller King Kovacs "
    "Lambert Lange Lopez Marsh Mason Mercer Miller Nolan Novak Okafor Olsen Palmer Parker Petrov Quinn "
    "Ramsey Reed Rossi Sato Schulz Silva Slater Stone Tanner Thorne Turner Vance Wagner Walker Weaver "
    "Winter Yates Young Ziegler"
)
CITIES = words(
    "Aachen Accra Ankara Antwerp Athens Bergen Berlin Bilbao Bogota Boston Bremen Bristol Brno Cairo "
    "Calgary Cardiff Chicago Cork Dakar Dallas Delhi Denver Dresden Dublin Durban Florence Geneva Ghent "
    "Glasgow Graz Hanoi Havana Helsinki Istanbul Jakarta Kyoto Lagos Leeds Leipzig Lima Linz Lisbon "
    "London Lyon Madrid Malaga Manila Marseille Milan Montreal Munich Nairobi Naples Odessa Oslo Ottawa "
    "Oxford Palermo Paris Porto Prague Quito Riga Rome Salem Seville Sofia Sydney Tallinn Tampa Tokyo "
    "Toledo Toronto Trieste Tunis Turin Utrecht Venice Vienna Warsaw Zurich"
)
ADJECTIVES = words(
    "amber ancient blue brave brass bright broken calm clever cold copper crimson crooked distant double "
    "dusty early eastern empty fading frozen gentle golden great green grey heavy hidden hollow humble "
    "iron ivory lazy little lonely lower marble narrow new northern old orange paper plain purple quick "
    "quiet rapid red round rusty sandy second secret silent silver simple small southern steep stone "
    "sturdy tall upper velvet violet warm western white wide wild windy wooden yellow young"
)
NOUNS = words(
    "anchor apple archive arrow attic balcony barn basket bell boat bridge button cabin camera candle "
    "canoe canyon castle cellar chapel clock cottage curtain desk dragon drum engine falcon feather ferry "
    "fountain garage garden gate hammer harbour hotel island kettle kitchen ladder lamp lantern "
    "laboratory lemon library lighthouse meadow mirror mountain museum needle oak office orchard organ "
    "owl palace parcel pavilion pencil piano pillow pump rabbit radio river robot saddle school server "
    "shed ship station stove studio telescope temple theatre tiger tower tractor train tunnel umbrella "
    "valley violin wagon warehouse well whistle willow window workshop"
)
JOBS = words(
    "baker bookbinder carpenter chemist clockmaker cook dentist diver engineer farmer gardener glazier "
    "judge lawyer librarian locksmith miner musician nurse painter pilot plumber potter printer sailor "
    "sculptor shepherd shoemaker surgeon surveyor tailor teacher translator watchman weaver"
)
COLOURS = phrases(
    "amber, black, bottle green, brown, cherry red, cobalt blue, cream, crimson, gold, grey, indigo, "
    "ivory, khaki, lavender, lemon yellow, lilac, maroon, mint green, navy blue, ochre, olive, orange, "
    "pink, purple, scarlet, silver, sky blue, turquoise, violet, white"
)
ANIMALS = phrases(
    "canary, cat, chameleon, dachshund, donkey, ferret, goat, goldfish, goose, greyhound, guinea pig, "
    "hamster, hedgehog, iguana, lizard, macaw, mule, parrot, peacock, pig, pony, poodle, python, rabbit, "
    "raven, sheepdog, snail, spaniel, tarantula, terrier, toad, tortoise"
)
DISHES = phrases(
    "apple pie, barley soup, bean stew, beetroot salad, cheese dumplings, cherry cake, chicken curry, "
    "fish pie, fried rice, goulash, herring with onions, lamb chops, lentil soup, mushroom risotto, "
    "mutton pie, onion tart, pancakes, pea soup, pickled cucumbers, plum cake, potato salad, pumpkin "
    "soup, rice pudding, roast duck, sauerkraut, spinach pie, stuffed peppers, tomato soup, trout, "
    "vegetable lasagne"
)
EVENTS = phrases(
    "annual meeting, auction, autumn fair, boat race, book sale, budget review, chess tournament, choir "
    "rehearsal, concert, dance lesson, debate, fire drill, flower show, football match, job interview, "
    "lecture on bees, model contest, parents' evening, photo exhibition, poetry reading, quiz night, "
    "sewing circle, spring cleaning, staff party, summer school, swimming gala, theatre visit, wedding, "
    "wine tasting, yoga class"
)
PLACES = phrases(
    "behind the oven, behind the third brick, beside the coal bucket, in a biscuit tin, in the blue vase, "
    "in the left boot, in the piano stool, in the sewing box, inside the grandfather clock, on the "
    "highest shelf, on the window sill, over the kitchen door, under a flower pot, under the doormat, "
    "under the loose floorboard, under the sugar bowl, among the old newspapers, next to the beehive, on "
    "a nail in the cellar, in the bird house"
)
MONTHS = words("January February March April May June July August September October November December")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
VERBS = words("bring carry count find hide keep leave paint polish repair save sell send take wash")


def subject(kind: str, rng: random.Random) -> str:
    """Return a random subject of a fact: one of "people", "cities", "things", "events"."""
    if kind == "people":
        return f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAMES)}"
    if kind == "things":
        return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    return rng.choice({"cities": CITIES, "events": EVENTS}[kind])


def value(pattern: str, rng: random.Random) -> str:
    """Return a random value of a named kind or a pattern (# digit, not 0 first; @ letter; `word` word)."""
    lists = {"city": CITIES, "job": JOBS, "colour": COLOURS, "pet": ANIMALS, "dish": DISHES, "place": PLACES}
    if pattern in lists:
        return rng.choice(lists[pattern])
    if pattern == "person":
        return subject("people", rng)
    if pattern == "time":
        return f"{rng.randint(1, 12)}:{rng.randrange(60):02d} {rng.choice(('a.m.', 'p.m.'))}"
    if pattern == "date":
        return f"{rng.choice(DAYS)}, {rng.choice(MONTHS)} {rng.randint(1, 28)}"
    if pattern == "sentence":
        return sentence(rng)
    if "word" in pattern:
        return " ".join(rng.choice(rng.choice((ADJECTIVES, NOUNS))) for _ in pattern.split())
    text = ""
    for sign in pattern:
        first = not text[-1:].isdigit()
        text += {
            "#": rng.choice("123456789" if first else string.digits),
            "@": rng.choice(string.ascii_uppercase),
        }.get(sign, sign)
    return text


def sentence(rng: random.Random) -> str:
    thing, other = subject("things", rng), subject("things", rng)
    verb, second = rng.sample(VERBS, 2)
    return rng.choice(
        (
            f"Do not {verb} the {thing} before {rng.choice(DAYS)}, but {second} the {other} at once.",
            f"We shall {verb} {rng.randint(2, 40)} of them in {rng.choice(CITIES)} and {second} the {thing}.",
            f"Tell {rng.choice(FIRST_NAMES)} to {verb} the {thing} and never to {second} the {other} again.",
            f"If the {thing} is lost, {verb} the {other} and wait in {rng.choice(CITIES)}.",
        )
    )
