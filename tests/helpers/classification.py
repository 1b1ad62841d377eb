"""Examples of a small classification task."""

import json
import random

GOOD, BAD = ("fine", "lovely", "bright"), ("dull", "grim", "sour")


def write_examples(path, count, seed):
    """Sentences whose class is that of one word in them; a third is "good"."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        is_good = draw.random() < 1 / 3
        words = [
            *draw.sample(["a", "day", "the", "sea", "of", "stones"], draw.randint(1, 5)),
            draw.choice(GOOD if is_good else BAD),
        ]
        rows.append((" ".join(words), "good" if is_good else "bad"))
    if path.suffix == ".tsv":
        path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows))
    else:
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path
