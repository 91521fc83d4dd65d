"""Classify pictures with Vision Mamba.

    python examples/classify_an_image.py photos/ --weights vim_t_midclstok_76p1acc.pth

`--weights` takes a .pth or .safetensors file, or the name of published weights (with scanlab[hub]). A picture that
cannot be read is reported and does not stop the others; then the program ends with status 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from scanlab.errors import ScanlabError
from scanlab.models.checkpoints import open_model
from scanlab.models.classify import classify, find_pictures


def main(arguments: list[str] | None = None) -> int:
    """Print the most probable classes of each picture and return the exit status."""
    parser = argparse.ArgumentParser(description="Classify pictures with Vision Mamba.")
    parser.add_argument("images", nargs="+", type=Path, help="pictures, and folders of pictures")
    parser.add_argument("--weights", required=True, help="a file of weights, or a published name")
    parser.add_argument("--size", type=int, default=224, help="pixels along one side of the model's input")
    parser.add_argument("--top", type=int, default=5, help="how many classes to name")
    asked = parser.parse_args(arguments)
    unreadable = 0
    try:
        model = open_model(asked.weights, img_size=asked.size)
        for picture in classify(model, find_pictures(asked.images), top=asked.top):
            print(picture.path)
            if picture.reason:
                print(f"  {picture.reason}", file=sys.stderr)
                unreadable += 1
            for name, probability in picture.classes:
                print(f"  {probability:6.1%}  {name}")
    except ScanlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
