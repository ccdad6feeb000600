"""What the set `stamps` takes from the Debian package tuxpaint-stamps-default: photographs, and parts of recordings.

Every kind of `KINDS` has at least two photographs, of different animals, and a recording that can be divided. Parts
were chosen from spectrograms and by cross-correlation: nothing that test clips play repeats what train clips play.
Several recordings are loops (seagull.ogg from 1.9 s on, donkey.ogg from 1.5 s on), and some files hold the same one
(dromedary.ogg is the end of camel.ogg); these are left out. Paths are below `stamps/`, times in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

Part = tuple[str, float, float]  # a recording, and where the part begins and ends


@dataclass(frozen=True)
class Kind:
    """A class: what train clips show and play, what test clips play, and other animals of the kind."""

    pictures: tuple[str, ...]  # of train clips and of `test` clips
    others: tuple[str, ...]  # of `other` clips alone
    train: tuple[Part, ...]
    test: tuple[Part, ...]
    other: tuple[Part, ...] = ()  # of recordings that train clips do not use; (): those of `test`

    def shown(self, split: str) -> tuple[str, ...]:
        """The photographs of a split: train, test or other."""
        return self.others if split == "other" else self.pictures

    def heard(self, split: str) -> tuple[Part, ...]:
        """The parts of recordings of a split."""
        return {"train": self.train, "test": self.test, "other": self.other or self.test}[split]


BIRDS, MAMMALS = "animals/birds", "animals/mammals"
BOVINES, DEER = f"{MAMMALS}/bovines", f"{MAMMALS}/deer"


def _of(path: str, *times: tuple[float, float]) -> tuple[Part, ...]:
    return tuple((f"{path}.ogg", start, end) for start, end in times)


KINDS: dict[str, Kind] = {
    "bear": Kind(
        (f"{MAMMALS}/bears/bear.png",),
        (f"{MAMMALS}/bears/european-bear.png",),
        _of(f"{MAMMALS}/bears/bear", (0.1, 1.9)),
        _of(f"{MAMMALS}/bears/bear", (1.95, 3.2)),
    ),
    "camel": Kind(
        (f"{MAMMALS}/camel/camel.png",),
        (f"{MAMMALS}/camel/dromedary.png",),
        _of(f"{MAMMALS}/camel/camel", (0.2, 1.5), (2.4, 3.2), (3.8, 4.8)),
        _of(f"{MAMMALS}/camel/camel", (3.2, 3.8), (4.8, 5.5)),
    ),
    "chicken": Kind(
        (f"{BIRDS}/hen.png",),
        (f"{BIRDS}/chicken_profile.png",),
        _of(f"{BIRDS}/hen", (0.0, 0.83)),
        _of(f"{BIRDS}/hen", (0.84, 1.44)),
    ),
    "cow": Kind(
        (f"{BOVINES}/cow_white.png",),
        (f"{BOVINES}/cow.png",),
        _of(f"{BOVINES}/cow_white", (0.75, 1.55)),
        _of(f"{BOVINES}/cow_white", (1.55, 2.12)),
        _of(f"{BOVINES}/cow", (0.3, 1.1)),
    ),
    "deer": Kind(
        (f"{DEER}/deer.png", f"{DEER}/caribou.png"),
        (f"{DEER}/doe.png", f"{DEER}/wapiti.png"),
        (*_of(f"{DEER}/deer", (0.0, 1.85)), *_of(f"{DEER}/caribou", (0.0, 0.95), (2.2, 3.0))),
        (*_of(f"{DEER}/deer", (1.85, 3.15)), *_of(f"{DEER}/caribou", (0.95, 1.9), (3.0, 3.6))),
        _of(f"{DEER}/doe", (0.25, 1.3), (1.6, 4.1)),
    ),
    "dog": Kind(
        (f"{MAMMALS}/dogs/dog.png",),
        (f"{MAMMALS}/dogs/dingo.png",),
        _of(f"{MAMMALS}/dogs/dog", (0.0, 0.36)),
        _of(f"{MAMMALS}/dogs/dog", (0.53, 0.92)),
    ),
    "donkey": Kind(
        (f"{MAMMALS}/equines/donkey.png",),
        (f"{MAMMALS}/equines/donkey_eating.png",),
        _of(f"{MAMMALS}/equines/donkey", (0.15, 1.0)),
        _of(f"{MAMMALS}/equines/donkey", (1.0, 1.42)),
    ),
    "duck": Kind(
        (f"{BIRDS}/duck.png",),
        (f"{BIRDS}/drake.png",),
        _of(f"{BIRDS}/duck", (0.05, 1.75)),
        _of(f"{BIRDS}/duck", (1.77, 3.2)),
        _of(f"{BIRDS}/drake", (0.05, 0.6)),
    ),
    "frog": Kind(
        ("animals/amphibians/frog.png",),
        ("animals/amphibians/frog-1.png",),
        _of("animals/amphibians/frog", (0.15, 0.45), (0.75, 1.08), (1.1, 1.3)),
        _of("animals/amphibians/frog", (0.48, 0.75), (1.3, 1.5)),
    ),
    "goat": Kind(
        (f"{BOVINES}/goat.png",),
        (f"{BOVINES}/mountaingoat.png",),
        _of(f"{BOVINES}/goat", (0.0, 0.42)),
        _of(f"{BOVINES}/goat", (0.42, 0.7)),
    ),
    "gull": Kind(
        (f"{BIRDS}/seagull.png",),
        (f"{BIRDS}/silver-gull.png",),
        _of(f"{BIRDS}/seagull", (0.05, 1.1)),
        _of(f"{BIRDS}/seagull", (1.12, 1.9)),
    ),
    "heron": Kind(
        (f"{BIRDS}/heron_greatblue_flying.png",),
        (f"{BIRDS}/heron_greatblue.png",),
        _of(f"{BIRDS}/heron_greatblue_flying", (0.15, 0.5), (0.9, 1.2), (1.55, 1.9)),
        _of(f"{BIRDS}/heron_greatblue_flying", (2.5, 2.95)),
    ),
    "insect": Kind(
        ("animals/insects/hornet.png",),
        ("animals/insects/hoverfly.png",),
        _of("animals/insects/hornet", (0.0, 1.3)),
        _of("animals/insects/hornet", (1.3, 2.1)),
        _of("animals/insects/bee", (0.8, 5.0)),
    ),
    "lion": Kind(
        (f"{MAMMALS}/cats/lion.png",),
        (f"{MAMMALS}/cats/lion-2.png",),
        _of(f"{MAMMALS}/cats/lion", (0.1, 1.1)),
        _of(f"{MAMMALS}/cats/lion", (1.1, 1.8)),
    ),
    "mouse": Kind(
        (f"{MAMMALS}/rodents/mouse.png",),
        (f"{MAMMALS}/rodents/rat.png",),
        _of(f"{MAMMALS}/rodents/mouse", (0.28, 0.5), (0.93, 1.15)),
        _of(f"{MAMMALS}/rodents/mouse", (0.05, 0.24), (0.58, 0.88)),
    ),
    "penguin": Kind(
        (f"{BIRDS}/penguin.png", f"{BIRDS}/little-penguin.png"),
        (f"{BIRDS}/magellanic_penguin.png",),
        _of(f"{BIRDS}/penguin", (0.2, 1.8)),
        _of(f"{BIRDS}/penguin", (1.8, 2.85)),
    ),
    "pig": Kind(
        (f"{MAMMALS}/pig.png",),
        (f"{MAMMALS}/pig_golden.png", f"{MAMMALS}/pig_golden2.png"),
        _of(f"{MAMMALS}/pig", (0.0, 0.22)),
        _of(f"{MAMMALS}/pig", (0.36, 0.55)),
        (*_of(f"{MAMMALS}/pig_golden", (0.06, 0.3)), *_of(f"{MAMMALS}/pig_golden2", (0.03, 0.25))),
    ),
    "rabbit": Kind(
        (f"{MAMMALS}/rodents/rabbit.png", f"{MAMMALS}/rodents/rabbit-2.png"),
        (f"{MAMMALS}/rabbit_little.png",),
        _of(f"{MAMMALS}/rodents/rabbit", (0.1, 0.75), (0.97, 1.62)),
        _of(f"{MAMMALS}/rodents/rabbit", (1.85, 2.5)),
    ),
    "sheep": Kind(
        (f"{BOVINES}/sheep.png", f"{BOVINES}/ram.png"),
        (f"{BOVINES}/sheep_lamb.png",),
        _of(f"{BOVINES}/sheep", (0.02, 0.62)),
        _of(f"{BOVINES}/sheep", (0.62, 1.03)),
        _of(f"{BOVINES}/sheep_lamb", (0.1, 0.54)),
    ),
    "tiger": Kind(
        (f"{MAMMALS}/cats/tiger.png",),
        (f"{MAMMALS}/cats/tiger_sumatran.png",),
        _of(f"{MAMMALS}/cats/tiger", (1.1, 2.4), (3.0, 3.4), (4.8, 5.6)),
        _of(f"{MAMMALS}/cats/tiger", (3.5, 4.3), (5.6, 6.5)),
    ),
}

FOUR = ("bear", "chicken", "gull", "insect")  # that look and sound unlike each other: for short trainings

# Photographs of which clips show an enlarged part as their background: those of train clips, and those of the rest.
BACKDROPS: dict[bool, tuple[str, ...]] = {
    True: (
        *(f"food/fruit/{name}.png" for name in ("Apricot_whole", "avocado", "cherimoya", "pineapple", "grapes")),
        *("food/spices/ginger.png", "food/vegetables/onion.png", "space/moon/moon_full.png"),
        *(f"space/planets/{name}.png" for name in ("2_venus", "5_jupiter", "3_earth")),
        *(f"seasonal/halloween/grave-{letter}.png" for letter in "abdi"),
        *("plants/trees/holm_oak.png", "plants/trees/rambutan.png", "plants/trees/pinecone.png"),
        *("plants/mushrooms/cep-1.png", "plants/flowers/anemone_red.png", "plants/flowers/marigold.png"),
        *("plants/flowers/adeenia.png", "plants/flowers/flower2.png", "town/monuments/inukshuk-photo.png"),
    ),
    False: (
        *(f"food/fruit/{name}.png" for name in ("orange_seville", "kiwi", "Strawberry2")),
        *("food/vegetables/broccoli.png", "space/moon/moon_3qt.png"),
        *(f"space/planets/{name}.png" for name in ("4_mars", "8_neptune", "1_mercury")),
        *(f"seasonal/halloween/grave-{letter}.png" for letter in "hj"),
        *("plants/trees/tree336.png", "plants/mushrooms/cep-2.png", "plants/flowers/red-gazania.png"),
        *("plants/flowers/rose.png", "plants/flowers/flower9.png"),
    ),
}
# Photographs of things that neither sound nor are of a kind above, beside the animal in some clips: in the same way.
THINGS: dict[bool, tuple[str, ...]] = {
    True: (
        *(f"vehicles/auto/{name}.png" for name in ("beetle", "sedan")),
        *("vehicles/ship/chineseJunk.png", "vehicles/cycle/pink_tricycle.png", "vehicles/garbagetruck.png"),
        *(f"hobbies/music/string/{name}.png" for name in ("guitar_classical", "guitar2")),
        *("sports/basketball.png", "sports/soccer.png", "sports/trophy_cup.png", "household/tools/wrench.png"),
        *("plants/flowers/daffodil.png", "plants/flowers/iris.png", "food/fruit/pear.png", "food/fruit/lemon.png"),
        *("town/uk_post_box.png", "people/fireman200b.png"),
    ),
    False: (
        *("vehicles/auto/truck.png", "vehicles/ship/walnutBoat.png", "vehicles/masstransit/green_korean_bus.png"),
        *("hobbies/music/string/guitar_electric.png", "hobbies/music/brass/trumpet.png", "sports/football.png"),
        *("sports/tennis_racket.png", "household/tools/wrench_plumbers.png", "plants/flowers/flower6.png"),
        *("food/fruit/banana.png", "town/usps_mailbox.png", "vehicles/flight/balloon360.png"),
    ),
}


def pictures() -> dict[str, str]:
    """Every photograph of the set, and what it is used as."""
    used = {path: kind for kind, of_kind in KINDS.items() for path in (*of_kind.pictures, *of_kind.others)}
    used |= {path: "background" for part in BACKDROPS.values() for path in part}
    return used | {path: "thing" for part in THINGS.values() for path in part}


def recordings() -> dict[str, str]:
    """Every recording of the set, and whose it is."""
    return {
        path: kind
        for kind, of_kind in KINDS.items()
        for split in ("train", "test", "other")
        for path, _, _ in of_kind.heard(split)
    }
