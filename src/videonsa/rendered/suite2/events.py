"""Shows of events: objects that come by, flash, return and meet, and a counter that changes."""

from collections.abc import Sequence
from dataclasses import replace

from videonsa.rendered.clips.scene import DIRECTIONS, PALETTE, SAMPLE_PERIOD, SHAPES
from videonsa.rendered.suite2.acts import WHITE_SQUARE, Act
from videonsa.rendered.suite2.pictures import with_sign
from videonsa.rendered.suite2.plan2 import DECOYS, TIMES, sign_seconds
from videonsa.rendered.suite2.shown import Make, Shown

DIGITS = tuple("0123456789")
FIRST, LAST = "first", "last"


def crossers(make: Make, units: int) -> Shown:
    """Objects that come by, each once.

    `direction`: which way one went. One of 4. Text tokens can answer from its tokens alone.
    `order`: which of two came by first. One of the two. Text tokens can answer from the positions
    of both. The pairs that are asked form a tree: none follows from others.
    """
    stage, shown = make.stage, Shown()
    names = [make.cast.comes_by() for _ in range(units)]
    ways = [stage.rng.choice(list(DIRECTIONS)) for _ in names]
    acts = [stage.come_by(name, way) for name, way in zip(names, ways, strict=True)]
    shown.series.append(acts)
    if "direction" in make.kinds:
        for name, way, act in zip(names, ways, acts, strict=True):
            shown.ask("direction", f"Which way did the {name} go?", way, tuple(DIRECTIONS), [act])
    if "order" in make.kinds:
        drawn = stage.rng.sample(range(units), units)
        for place in range(1, units):
            early, late = sorted((drawn[place], stage.rng.choice(drawn[:place])))
            pair = stage.rng.sample([names[early], names[late]], 2)
            text = "Which came by first, the {} or the {}?".format(*pair)
            shown.ask("order", text, names[early], pair, [acts[early], acts[late]])
    return shown


def counts(make: Make, units: int) -> Shown:
    """`count`: how many times an object came by. 1 to 4.

    To be seen: all its visits. Text tokens can answer by attending to all of them at once.
    """
    shown, options = Shown(), [str(number + 1) for number in range(TIMES)]
    for _ in range(units):
        name = make.cast.comes_by()
        answer = make.stage.rng.choice(options)
        acts = [make.stage.come_by(name) for _ in range(int(answer))]
        shown.series.append(acts)
        shown.ask("count", f"How many times did the {name} come by?", answer, options, acts)
    return shown


def sizes(make: Make, units: int) -> Shown:
    """`compare`: whether an object was larger the first or the last time. One of the two.

    To be seen: two visits, far apart. Text tokens can answer from the tokens of both.
    """
    stage, shown = make.stage, Shown()
    for _ in range(units):
        name = make.cast.comes_by()
        answer = stage.rng.choice((FIRST, LAST))
        radii = (stage.large, stage.small) if answer == FIRST else (stage.small, stage.large)
        acts = [stage.come_by(name, radius=radius) for radius in radii]
        shown.apart.append(acts)
        text = f"Was the {name} larger the first or the last time?"
        shown.ask("compare", text, answer, (FIRST, LAST), acts)
    return shown


def tallies(make: Make, units: int) -> Shown:
    """`tally`: how many objects of a colour came by. 1 to 6 (easy), 7 or 8.

    To be seen: all visits of objects of the colour, of any shape, across the video. Text tokens can
    answer by attending to all of them at once.
    """
    stage, shown = make.stage, Shown()
    options = [str(number + 1) for number in range(stage.level.tally)]
    for colour in make.cast.tallied[:units]:
        answer = stage.rng.choice(options)
        acts = [stage.come_by(f"{colour} {stage.rng.choice(SHAPES)}") for _ in range(int(answer))]
        shown.series.append(acts)
        shown.ask("tally", f"How many {colour} objects came by?", answer, options, acts)
    return shown


def flashes(make: Make, units: int) -> Shown:
    """`needle`: the colour of the object of a shape that flashed. One of 9.

    To be seen: one frame. Text tokens can answer from its tokens alone.
    """
    stage, shown = make.stage, Shown()
    shapes: set[str] = set()
    for _ in range(units):
        name = make.cast.stands(lambda name: name.split()[1] not in shapes)
        colour, shape = name.split()
        shapes.add(shape)
        sprite = stage.sprite(name, stage.large, stage.spot(stage.large + 1))
        start = SAMPLE_PERIOD * stage.rng.randrange(2)
        act = Act(1, flashes=[replace(sprite, start=start, end=start + SAMPLE_PERIOD)])
        shown.series.append([act])
        text = f"What colour was the {shape} that flashed?"
        shown.ask("needle", text, colour, tuple(PALETTE), [act])
    return shown


def returns(make: Make, units: int) -> Shown:
    """`identity`: which digit stood with an object before it returned. One of 10.

    To be seen: several objects, each standing with a digit; some of them return in a white box,
    without it. The question names an object only by the way its box went. Text tokens have to find
    the box, what is in it, and where that stood; vision tokens of the box can already hold the
    digit, because they can attend to the object's first visit.
    """
    stage, shown = make.stage, Shown()
    digits = [stage.rng.choice(DIGITS) for _ in range(units + DECOYS)]
    names = [make.cast.does_both() for _ in digits]
    visits = [with_sign(make, name, digit) for name, digit in zip(names, digits, strict=True)]
    shown.series += [[visit] for visit in visits[units:]]
    ways = stage.rng.sample(list(DIRECTIONS), units)
    for name, digit, visit, way in zip(names, digits, visits, ways, strict=False):
        box = stage.box(name, way)
        shown.series.append([visit, box])
        text = f"Which digit was with the object that went {way} in a white box?"
        shown.ask("identity", text, digit, DIGITS, [visit, box])
    return shown


def counter(make: Make, units: int) -> Shown:
    """`state`: the value of a counter at the end, or after an object came by. 0 to 9.

    To be seen: a # with the first value, then signs + and -, one after the other. A value is the
    first one and all changes up to a moment: text tokens have to add them up, for a moment named by
    an object up to where it came by; vision tokens can carry the value along.
    """
    stage, shown = make.stage, Shown()
    # One sign more or less: the first value does not tell whether the last is even.
    steps = _steps(make, stage.level.signs + units - 1 - stage.rng.randrange(2))
    value = int(steps[0])
    shown_at_start = stage.signs("#" + steps[0], stage.cell_for(2, range(4)))
    begin, acts, values = stage.picture((), shown_at_start), [], []
    seconds = sign_seconds(stage.level)
    for sign in steps[1:]:
        cell = stage.cell_for(1, range(4))
        acts.append(Act(seconds, signs=stage.signs(sign, cell, seconds)))
        value += 1 if sign == "+" else -1
        values.append(str(value))
    markers = _markers(make, units, len(acts))
    shown.series.append(_between([begin, *acts], {place + 1: act for place, _, act in markers}))
    seen = [begin, *acts]
    shown.ask("state", "What was the counter at the end?", values[-1], DIGITS, seen)
    for place, name, act in markers:
        text = f"What was the counter after the {name} came by?"
        shown.ask("state", text, values[place], DIGITS, [*seen[: place + 2], act])
    return shown


def _steps(make: Make, number: int) -> str:
    """A first value and so many signs, such that every last value is equally likely."""
    rng = make.stage.rng
    value, signs = rng.randrange(10), []
    for _ in range(number):  # backwards from the last value
        sign = rng.choice([s for s in "+-" if 0 <= value - (1 if s == "+" else -1) <= 9])
        value -= 1 if sign == "+" else -1
        signs.append(sign)
    return str(value) + "".join(reversed(signs))


def _markers(make: Make, units: int, number: int) -> list[tuple[int, str, Act]]:
    """Objects that come by, each between two of so many events, and never two between the same."""
    places = sorted(make.stage.rng.sample(range(number - 1), units))
    names = [make.cast.comes_by() for _ in places]
    return [(p, name, make.stage.come_by(name)) for p, name in zip(places, names, strict=True)]


def _between(acts: Sequence[Act], after: dict[int, Act]) -> list[Act]:
    """Acts with others behind some of them, by their places."""
    series = []
    for place, act in enumerate(acts):
        series += [act, after[place]] if place in after else [act]
    return series


def carriers(make: Make, units: int) -> Shown:
    """`carry`: who had a white square at the end, or after an object came by. One of 3 (easy) or 4.

    To be seen: who stands with the white square at first, then which objects meet: two that come
    from both sides and touch. Whoever has the square hands it on; it is not seen again. Each
    meeting matters only through those before it: text tokens need a layer for each; vision tokens
    of a meeting can carry along who has the square.
    """
    stage, shown = make.stage, Shown()
    names = [make.cast.does_both() for _ in range(stage.level.carriers)]
    carrier, holders, acts = stage.rng.choice(names), [], []
    begin = _with_square(make, carrier)
    for _ in range(stage.level.meetings + units - 1):
        pair = stage.rng.sample(names, 2)
        acts.append(_meeting(make, pair))
        if carrier in pair:
            carrier = pair[1 - pair.index(carrier)]
        holders.append(carrier)
    markers = _markers(make, units, len(acts))
    shown.series.append(_between([begin, *acts], {place + 1: act for place, _, act in markers}))
    seen = [begin, *acts]
    shown.ask("carry", f"Who had the {WHITE_SQUARE} at the end?", carrier, names, seen)
    for place, name, act in markers:
        text = f"Who had the {WHITE_SQUARE} after the {name} came by?"
        shown.ask("carry", text, holders[place], names, [*seen[: place + 2], act])
    return shown


def _with_square(make: Make, name: str) -> Act:
    """An object that stands beside the white square."""
    stage, radius = make.stage, make.stage.middle
    x = stage.rng.randint(radius + 1, stage.size - 3 * radius - 2)
    y = stage.rng.randint(radius + 1, stage.size - radius - 2)
    pair = (
        stage.sprite(name, radius, (x, y)),
        stage.sprite(WHITE_SQUARE, radius, (x + 2 * radius, y)),
    )
    return stage.picture(pair)


def _meeting(make: Make, pair: Sequence[str]) -> Act:
    """Two objects come from the left and the right and touch."""
    stage, radius = make.stage, make.stage.middle
    y = stage.rng.randint(radius + 1, stage.size - radius - 2)
    # They touch in the last frame, half a second before the end.
    seconds = stage.level.crossing
    step = round((stage.size // 2 - 2 * radius - 1) * seconds / (seconds - SAMPLE_PERIOD))
    left = stage.sprite(pair[0], radius, (radius + 1, y), (step, 0))
    right = stage.sprite(pair[1], radius, (stage.size - radius - 2, y), (-step, 0))
    return Act(seconds, objects=(left, right))
