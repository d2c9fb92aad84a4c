"""Adapt to your own images with one LLM, and measure the gain for it and for another LLM.

    python examples/own_pictures.py PICTURES

PICTURES has one folder per class, named after the class: PICTURES/oak/*.jpg, PICTURES/elm/*.jpg, ... These
folders may also be in PICTURES/train/ and PICTURES/test/. Otherwise a fifth of the images is the test set.
"""

import argparse
from collections.abc import Sequence

import craft


def main(arguments: Sequence[str] | None = None) -> None:
    """Adapt, then compare the base tower with the adapted one on both backbones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pictures", help="a folder of class folders")
    parser.add_argument("--out", default="runs/own", help="the run folder")
    parser.add_argument("--surrogate", default="craft-tiny/qwen2", help="its LLM scores the answers")
    parser.add_argument("--other", default="craft-tiny/llama", help="another LLM of the same codebook")
    parser.add_argument("--steps", type=int, default=None, help="optimiser steps; by default the config's")
    args = parser.parse_args(arguments)

    # 1. Train the vision tower. Codebook, projector and LLM do not change, bit for bit.
    result = craft.adapt(args.surrogate, args.pictures, args.out, max_steps=args.steps)
    print(f"adapted encoder: {result.encoder}")
    print(f"never trained on: {', '.join(result.held_out) or 'no class was held out'}")

    # 2. The same test questions with the base tower (`like`) and the adapted one (`encoder`), for both LLMs.
    for name in (args.surrogate, args.other):
        before = craft.evaluate(name, like=result.out)
        after = craft.evaluate(name, encoder=result.out)
        print(f"{name}: {before.accuracy:.1%} -> {after.accuracy:.1%}")
        for part in ("seen", "unseen"):
            old, new = getattr(before, part), getattr(after, part)
            if old is not None and new is not None:
                print(f"  {part} classes: {old:.1%} -> {new:.1%}")


if __name__ == "__main__":
    main()
