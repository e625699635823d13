"""NSA and the hybrid layer as plain loops over rows, heads and keys, in float64.

Written from docs/semantics.md; shares nothing with the package. One sample at a time, as nested
lists: q `[T][HQ][D]`, k and v `[S][H][D]`, gates `[T][HQ][3]`. Slow on purpose.
"""

import math
from dataclasses import dataclass, field

NAMES = ("compressed", "selected", "window")


@dataclass(frozen=True)
class Options:
    """What is computed: block size (or "frame" and its sizes), n, w and the forced blocks."""

    s: int | str
    n: int
    w: int
    init: int = 0
    local: int = 0
    scope: str = "token"
    branches: tuple[str, ...] = NAMES
    frames: tuple[int, ...] = ()


@dataclass
class Result:
    """Nested lists over rows and query heads; selected over rows and KV heads."""

    output: list = field(default_factory=list)
    branch: dict = field(default_factory=lambda: {name: [] for name in NAMES})
    lse: dict = field(default_factory=lambda: {name: [] for name in NAMES})
    selected: list = field(default_factory=list)


def blocks_of(options, num_keys):
    """(start, end) of every block begun, the end as stated even if not yet reached."""
    if options.s != "frame":
        count = math.ceil(num_keys / options.s)
        return [(c * options.s, (c + 1) * options.s) for c in range(count)]
    blocks, start = [], 0
    for size in options.frames:
        if start >= num_keys:
            break
        parts = math.ceil(size / 128)
        left = size
        for part in range(parts):
            part_size = math.ceil(left / (parts - part))
            blocks.append((start, start + part_size))
            start += part_size
            left -= part_size
    return blocks


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def attend(query, keys, values):
    """Softmax attention of one query: (output, LSE, probabilities)."""
    dim = len(query)
    if not keys:
        return [0.0] * dim, -math.inf, []
    scores = [dot(query, key) / math.sqrt(dim) for key in keys]
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    probabilities = [weight / total for weight in weights]
    output = [sum(p * v[d] for p, v in zip(probabilities, values, strict=True)) for d in range(dim)]
    return output, top + math.log(total), probabilities


def mean(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def compressed_of(query, k, v, j, blocks, t):
    """The compressed branch of one query head, and the probability of each visible block."""
    seen = [c for c, (_, end) in enumerate(blocks) if end - 1 <= t]
    keys = [mean([k[i][j] for i in range(*blocks[c])]) for c in seen]
    values = [mean([v[i][j] for i in range(*blocks[c])]) for c in seen]
    output, lse, probabilities = attend(query, keys, values)
    return output, lse, dict(zip(seen, probabilities, strict=True))


def choose(importance, current, options):
    """Forced blocks, then the most important candidates, the lower index at a tie."""
    taken = {current}
    taken |= {c for c in range(current) if c < options.init}
    taken |= {c for c in range(current) if c >= current - options.local}
    rest = sorted((c for c in importance if c not in taken), key=lambda c: (-importance[c], c))
    taken |= set(rest[: options.n - len(taken)])
    return sorted(taken) + [-1] * (options.n - len(taken))


def select(q, k, v, blocks, options, first_row):
    """The selected blocks of every row and KV head."""
    groups = len(k[0])
    size = len(q[0]) // groups
    importance, currents = [], []
    for i, row in enumerate(q):
        t = first_row + i
        currents.append(next(c for c, (a, b) in enumerate(blocks) if a <= t < b))
        per_group = []
        for j in range(groups):
            total: dict[int, float] = {}
            for h in range(j * size, (j + 1) * size):
                for c, p in compressed_of(row[h], k, v, j, blocks, t)[2].items():
                    total[c] = total.get(c, 0.0) + p
            per_group.append(total)
        importance.append(per_group)
    if options.scope == "block":
        importance = share(importance, currents, groups)
    return [
        [choose(importance[i][j], currents[i], options) for j in range(groups)]
        for i in range(len(q))
    ]


def share(importance, currents, groups):
    """Sums the importance over the rows of each block, for the blocks wholly before it."""
    shared = []
    for i in range(len(importance)):
        rows = [r for r in range(len(importance)) if currents[r] == currents[i]]
        shared.append(
            [
                {c: sum(importance[r][j].get(c, 0.0) for r in rows) for c in range(currents[i])}
                for j in range(groups)
            ]
        )
    return shared


def nsa(q, k, v, gates, options, *, first_row=None, selected=None):
    """NSA of the rows first_row, first_row + 1, ... of one vision stream."""
    if first_row is None:
        first_row = len(k) - len(q)
    blocks = blocks_of(options, len(k))
    result = Result()
    result.selected = selected or select(q, k, v, blocks, options, first_row)
    groups = len(k[0])
    size = len(q[0]) // groups
    for i, row in enumerate(q):
        t = first_row + i
        outputs = []
        per_branch = {name: ([], []) for name in NAMES}
        for h, query in enumerate(row):
            j = h // size
            chosen = {c for c in result.selected[i][j] if c >= 0}
            of_selected = [key for c in sorted(chosen) for key in range(*blocks[c]) if key <= t]
            of_window = range(max(0, t - options.w + 1), t + 1)
            found = {
                "compressed": compressed_of(query, k, v, j, blocks, t),
                "selected": attend(
                    query, [k[x][j] for x in of_selected], [v[x][j] for x in of_selected]
                ),
                "window": attend(query, [k[x][j] for x in of_window], [v[x][j] for x in of_window]),
            }
            output = [0.0] * len(query)
            for b, name in enumerate(NAMES):
                per_branch[name][0].append(found[name][0])
                per_branch[name][1].append(found[name][1])
                if name in options.branches:
                    gate = gates[i][h][b]
                    output = [o + gate * x for o, x in zip(output, found[name][0], strict=True)]
            outputs.append(output)
        result.output.append(outputs)
        for name in NAMES:
            result.branch[name].append(per_branch[name][0])
            result.lse[name].append(per_branch[name][1])
    return result


def hybrid(q, k, v, gates, vision, valid, options, *, offset=None):
    """The hybrid layer of one sample: dense text rows, NSA vision rows, zero padding rows."""
    if offset is None:
        offset = len(k) - len(q)
    end = offset + len(q)
    groups = len(k[0])
    size = len(q[0]) // groups
    stream = [x for x in range(end) if vision[x] and valid[x]]
    rows = [x for x in stream if x >= offset]
    through_nsa = {}
    if rows:
        found = nsa(
            [q[x - offset] for x in rows],
            [k[x] for x in stream],
            [v[x] for x in stream],
            [gates[x - offset] for x in rows],
            options,
        )
        through_nsa = dict(zip(rows, found.output, strict=True))
    output = []
    for x in range(offset, end):
        if x in through_nsa:
            output.append(through_nsa[x])
            continue
        keys = [y for y in range(x + 1) if valid[y]] if valid[x] else []
        output.append(
            [
                attend(query, [k[y][h // size] for y in keys], [v[y][h // size] for y in keys])[0]
                for h, query in enumerate(q[x - offset])
            ]
        )
    return output
