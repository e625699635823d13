"""What the study's twins score if a last word that is written several times counts as once.

python benchmarks/doubled_words.py benchmarks/results/nvidia-h200/study_scaled_answers.jsonl.gz
"""

import argparse
import gzip
import json
import re
from collections import Counter
from pathlib import Path

_REPEATED = re.compile(r"\b(\w+)( \1)+$")


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("answers", type=Path)
    asked, right, lenient = Counter[tuple[int, str, str]](), Counter(), Counter()
    doubled = Counter[str]()
    with gzip.open(parser.parse_args().answers, "rt", encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            once = _REPEATED.sub(r"\1", line["reply"])
            doubled[line["model"]] += once != line["reply"]
            for kind in (line["kind"], "all"):
                key = line["length"], kind, line["attention"]
                asked[key] += 1
                right[key] += line["right"]
                lenient[key] += line["right"] or once == line["answer"]
    for key in sorted(asked):
        shares = (f"{100 * count[key] / asked[key]:.1f}" for count in (right, lenient))
        print("{:6} {:10} {:6}".format(*key), *shares, sep="  ")
    print("doubled:", dict(doubled))


if __name__ == "__main__":
    main()
