"""Divide faces in the layout of LFW into people to finetune on and people to measure on.

    python tools/lfw_halves.py IMAGES PAIRS OUT [FOLDS]

IMAGES contains name/name_0001.jpg and so on. PAIRS is a pairs file whose folds have no people in common. The last FOLDS
folds (default: more than half of them) become OUT/pairs.txt, to measure on. OUT/train.txt lists the images of all
people who are not in those pairs and have two images or more. OUT/all.txt lists all people with two images or more.
"""

import os
import sys

from tripletloss.base.errors import InputError
from tripletloss.base.files import write_whole
from tripletloss.data.folders import list_text
from tripletloss.data.pairs import read_pairs


def main():
    """Write the three files, and return the exit status."""
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__.split("\n\n")[1].strip())
    folder, source, out = sys.argv[1:4]
    try:
        file = read_pairs(source, folder)
        folds = int(file.folds.max()) + 1
        measured = int(sys.argv[4]) if len(sys.argv) == 5 else folds // 2 + 1
        with open(source, encoding="utf-8") as lines:
            lines = [line for line in lines.read().splitlines()[1:] if line.strip()]
        kept = lines[len(lines) - len(lines) // folds * measured :]
        os.makedirs(out, exist_ok=True)
        with open(os.path.join(out, "pairs.txt"), "w", encoding="utf-8") as pairs:
            pairs.write("\n".join([f"{measured} {len(lines) // folds // 2}", *kept]) + "\n")
        of_pairs = {name.partition("/")[0] for name in read_pairs(os.path.join(out, "pairs.txt"), folder).images.names}
        everyone = {}
        for name in sorted(os.listdir(folder)):
            images = [f"{name}/{image}" for image in sorted(os.listdir(os.path.join(folder, name)))]
            if len(images) > 1:
                everyone[name] = images
        people = {name: images for name, images in everyone.items() if name not in of_pairs}
        for name, listed in (("train.txt", people), ("all.txt", everyone)):
            write_whole(os.path.join(out, name), list_text(listed, list(listed), 0).encode())
    except (InputError, OSError) as error:
        print(f"lfw_halves.py: {error}", file=sys.stderr)
        return 1
    print(f"{out}/train.txt: {sum(map(len, people.values()))} images of {len(people)} people")
    print(f"{out}/all.txt: {sum(map(len, everyone.values()))} images of {len(everyone)} people")
    print(f"{out}/pairs.txt: {len(kept)} pairs in {measured} folds, of {len(of_pairs)} other people")
    return 0


if __name__ == "__main__":
    sys.exit(main())
