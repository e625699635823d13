"""Shows of pictures: objects that stand, alone in a still or for some seconds in a video.

Each picture is asked about such that no answer follows from others: of the three objects in the
corners at most two are asked about, and only one pair of them is compared; a pair and a trio are
asked about once.
"""

import cmath
import math

from videonsa.rendered.clips.scene import SHAPES, Sprite
from videonsa.rendered.suite.font import LETTERS
from videonsa.rendered.suite2.acts import CELLS, QUARTERS, Act
from videonsa.rendered.suite2.shown import Make, Shown

SIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
HOW_MANY = ("1", "2", "3", "4")
LETTERED = LETTERS[:16]
"""Of scenes; the other letters are distractors."""
_NUM_OPTIONS = 10
_GROUP = 3  # rows and columns of places in a group


def corners(make: Make, units: int) -> Shown:
    """Three objects in three quarters, of two sizes.

    `place`: in which corner an object was. One of 4. `larger`: which of two objects was larger.
    One of the two. To be seen: one picture. Text tokens can answer from its tokens alone.
    """
    stage, shown = make.stage, Shown()
    for _ in range(units):
        names = [make.cast.stands() for _ in range(3)]
        radii = [stage.small, stage.large]
        stage.rng.shuffle(radii)
        radii.append(stage.rng.choice(radii))
        quarters = stage.rng.sample(list(QUARTERS), 3)
        act = stage.picture(
            [stage.in_quarter(*one) for one in zip(names, radii, quarters, strict=True)]
        )
        shown.series.append([act])
        if "place" in make.kinds:
            for i in stage.rng.sample(range(3), 2):
                text = f"In which corner was the {names[i]}?"
                shown.ask("place", text, quarters[i], tuple(QUARTERS), [act])
        if "larger" in make.kinds:
            pair = names[:2]
            answer = pair[radii.index(stage.large)]
            stage.rng.shuffle(pair)
            text = "Which was larger, the {} or the {}?".format(*pair)
            shown.ask("larger", text, answer, pair, [act])
    return shown


def sides(make: Make, units: int) -> Shown:
    """`relation`: on which side of an object another one stood. One of 4.

    To be seen: one picture of the two. Text tokens can answer from its tokens alone.
    """
    shown = Shown()
    for _ in range(units):
        names = make.cast.stands(), make.cast.stands()
        side = make.stage.rng.choice(list(SIDES))
        act = _beside(make, names, side)
        shown.series.append([act])
        text = f"Which way from the {names[1]} was the {names[0]}?"
        shown.ask("relation", text, side, tuple(SIDES), [act])
    return shown


def _beside(make: Make, names: tuple[str, str], side: str) -> Act:
    """The first object stands on this side of the second."""
    stage = make.stage
    radius = stage.middle
    step = SIDES[side]
    margin = radius + 2
    along = stage.rng.randint(round(2.5 * radius), stage.size - 1 - 2 * margin)
    tilt = int(along * stage.level.tilt)
    across = stage.rng.randint(-tilt, tilt)
    dx = step[0] * along if step[0] else across
    dy = step[1] * along if step[1] else across
    low, high = margin, stage.size - 1 - margin
    x = stage.rng.randint(low + max(0, -dx), high - max(0, dx))
    y = stage.rng.randint(low + max(0, -dy), high - max(0, dy))
    other = stage.sprite(names[1], radius, (x, y))
    return stage.picture([stage.sprite(names[0], radius, (x + dx, y + dy)), other])


def distances(make: Make, units: int) -> Shown:
    """`distance`: which of two objects stood nearer to a third. One of the two.

    To be seen: one picture of the three. Text tokens can answer from its tokens alone.
    """
    shown = Shown()
    for _ in range(units):
        anchor, near, far = (make.cast.stands() for _ in range(3))
        act = _trio(make, (anchor, near, far))
        shown.series.append([act])
        pair = make.stage.rng.sample([near, far], 2)
        text = "Which was nearer to the {}, the {} or the {}?".format(anchor, *pair)
        shown.ask("distance", text, near, pair, [act])
    return shown


def _trio(make: Make, names: tuple[str, str, str]) -> Act:
    """The second object stands near the first, the third farther away."""
    stage = make.stage
    radius = stage.small
    least = round(2.2 * radius)
    while True:
        anchor = complex(*stage.spot(radius + 2))
        near = stage.rng.uniform(least, 0.45 * stage.size)
        far = near * stage.level.ratio * stage.rng.uniform(1.0, 1.2)
        places = [anchor]
        for length in (near, far):
            offset = cmath.rect(length, stage.rng.uniform(0, 2 * math.pi))
            places.append(anchor + complex(round(offset.real), round(offset.imag)))
        apart = abs(places[1] - places[2]) >= least
        low, high = radius + 2, stage.size - radius - 3
        if apart and all(low <= p.real <= high and low <= p.imag <= high for p in places[1:]):
            break
    return stage.picture(
        [
            stage.sprite(name, radius, (int(p.real), int(p.imag)))
            for name, p in zip(names, places, strict=True)
        ]
    )


def groups(make: Make, units: int) -> Shown:
    """`howmany`: how many objects of a colour, or of a shape, stood with an object. 1 to 4.

    To be seen: one picture of five objects. Text tokens can answer from its tokens alone.
    """
    stage, shown = make.stage, Shown()
    for _ in range(units):
        value, alike = make.cast.alike(2)

        def differs(name: str, value: str = value) -> bool:
            return value not in name.split()

        named, filler = (make.cast.stands(differs) for _ in range(2))
        number = stage.rng.randint(1, len(HOW_MANY))
        names = stage.rng.choices(alike, k=number)
        names += [filler] * (len(HOW_MANY) - number)
        act = stage.picture(_in_rows(make, [named, *names]))
        shown.series.append([act])
        text = f"How many {_plural(value)} were with the {named}?"
        shown.ask("howmany", text, str(number), HOW_MANY, [act])
    return shown


def _plural(value: str) -> str:
    """Of a shape, or of objects of a colour."""
    if value not in SHAPES:
        return f"{value} objects"
    return f"{value}es" if value == "cross" else f"{value}s"


def plaques(make: Make, units: int) -> Shown:
    """`number`: which number stood with an object. One of 10.

    To be seen: one picture, each digit in a token of its own. Text tokens can answer from these.
    """
    stage, shown = make.stage, Shown()
    length = stage.level.digits
    low = 10 ** (length - 1)
    for _ in range(units):
        name = make.cast.stands()
        numbers = stage.rng.sample(range(low, 10 * low), _NUM_OPTIONS)
        answer = str(stage.rng.choice(numbers))
        act = with_sign(make, name, answer)
        shown.series.append([act])
        options = [str(number) for number in sorted(numbers)]
        shown.ask("number", f"Which number was with the {name}?", answer, options, [act])
    return shown


def with_sign(make: Make, name: str, text: str) -> Act:
    """An object in one half of the frame, digits in the other."""
    stage = make.stage
    half, radius = stage.size // 2, stage.middle
    upper = stage.rng.random() < 0.5
    rows = range(CELLS // 2) if upper else range(CELLS // 2, CELLS)
    signs = stage.signs(text, stage.cell_for(len(text), rows))
    x = stage.rng.randint(radius + 1, stage.size - radius - 2)
    y = stage.rng.randint(radius + 1, half - radius - 2) + (half if upper else 0)
    return stage.picture([stage.sprite(name, radius, (x, y))], signs)


def sets(make: Make, units: int) -> Shown:
    """`scenes`: what stood in one of two lettered scenes, but not in the other. One of 4.

    To be seen: two pictures of three objects and a letter, far apart, with two objects in common.
    Text tokens have to find both scenes by their letters and tell their objects apart; vision
    tokens of the second can already tell what they have seen before.
    """
    stage, shown = make.stage, Shown()
    letters = stage.rng.sample(LETTERED, 2 * units)
    for unit in range(units):
        names = [make.cast.stands() for _ in range(4)]
        options = stage.rng.sample(names, 4)
        gone, new, *both = names
        one, other = letters[2 * unit : 2 * unit + 2]
        acts = [_lettered(make, one, [gone, *both]), _lettered(make, other, [new, *both])]
        shown.apart.append(acts)
        text = "What was in scene {} but not in scene {}?"
        shown.ask("scenes", text.format(one, other), gone, options, acts)
        shown.ask("scenes", text.format(other, one), new, options, acts)
    return shown


def _lettered(make: Make, letter: str, names: list[str]) -> Act:
    """Objects in three quarters, a letter in the fourth."""
    stage = make.stage
    *quarters, left = stage.rng.sample(list(QUARTERS), 4)
    column, row = (2 * place + stage.rng.randrange(2) for place in QUARTERS[left])
    objects = [
        stage.in_quarter(name, stage.middle, quarter)
        for name, quarter in zip(names, quarters, strict=True)
    ]
    return stage.picture(objects, stage.signs(letter, (column, row)))


def _in_rows(make: Make, names: list[str]) -> list[Sprite]:
    """Small objects, each somewhere in one of nine places."""
    stage = make.stage
    radius, side = stage.small, stage.size // _GROUP
    places = stage.rng.sample(range(_GROUP**2), len(names))
    objects = []
    for name, place in zip(names, places, strict=True):
        x, y = (stage.rng.randint(radius + 1, side - radius - 2) for _ in range(2))
        corner = side * (place % _GROUP), side * (place // _GROUP)
        objects.append(stage.sprite(name, radius, (corner[0] + x, corner[1] + y)))
    return objects
