"""Flowers-102: British flowers. The original names no classes; the names are those its authors published."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from craft.core.errors import DataError
from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.classes import ClassNames, from_copy, labelled
from craft.data.benchmarks.reading import Note, find_below, need_below, read_mat
from craft.data.readers.rows import Row
from craft.data.sample import Sample

DOMAIN = "flower"
NAMES = tuple(
    """pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily,
    moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea,
    spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily, balloon flower,
    giant white arum lily, fire lily, pincushion flower, fritillary, red ginger, grape hyacinth, corn poppy,
    prince of wales feathers, stemless gentian, artichoke, sweet william, carnation, garden phlox,
    love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya, cape flower, great masterwort,
    siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia, bolero deep blue, wallflower,
    marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy, primula, sunflower, pelargonium,
    bishop of llandaff, gaura, geranium, orange dahlia, pink-yellow dahlia, cautleya spicata,
    japanese anemone, black-eyed susan, silverbush, californian poppy, osteospermum, spring crocus,
    bearded iris, windflower, tree poppy, gazania, azalea, water lily, rose, thorn apple, morning glory,
    passion flower, lotus, toad lily, anthurium, frangipani, clematis, hibiscus, columbine, desert-rose,
    tree mallow, magnolia, cyclamen, watercress, canna lily, hippeastrum, bee balm, ball moss, foxglove,
    bougainvillea, camellia, mallow, mexican petunia, bromelia, blanket flower, trumpet creeper,
    blackberry lily""".replace("\n", " ").split(",")
)
CLASSES = ClassNames("Flowers-102", (" ".join(name.split()) for name in NAMES))
"""In the order of the original's labels, 1 to 102."""

SPLITS = {"trnid": "train", "valid": "validation", "tstid": "test"}
"""The variables of setid.mat, and what they mean."""


def _original(root: Path, note: Note) -> Iterator[Sample]:
    setid = find_below(root, "setid.mat")
    if setid is None:
        return
    labels = np.atleast_1d(read_mat(need_below(root, "Flowers-102", "imagelabels.mat", setid))["labels"])
    images = need_below(root, "Flowers-102", "jpg", setid)
    sets = read_mat(setid)
    for variable, split in SPLITS.items():
        for number in np.atleast_1d(sets[variable]).tolist():
            if not 1 <= number <= len(labels):
                raise DataError(f"{setid}: image {number} has no label; imagelabels.mat has {len(labels)}.")
            name = f"image_{number:05d}.jpg"
            label = CLASSES.names[int(labels[number - 1]) - 1]
            yield labelled(name, str(images / name), label, DOMAIN, split, f"{setid}, image {number}")


def _copy(row: Row, note: Note) -> Iterable[Sample]:
    return from_copy(row, CLASSES.find, DOMAIN, note)


FLOWERS102 = Benchmark(
    name="flowers102",
    title="Flowers-102",
    task="classification",
    domain=DOMAIN,
    licence="not stated",
    source="Nilsback and Zisserman, 2008 (robots.ox.ac.uk/~vgg/data/flowers/102)",
    get="102flowers.tgz, imagelabels.mat and setid.mat from www.robots.ox.ac.uk/~vgg/data/flowers/102/.",
    layout="jpg/image_<5 digits>.jpg, imagelabels.mat and setid.mat",
    sizes={"train": 1020, "validation": 1020, "test": 6149},
    classes=102,
    original=_original,
    copy=_copy,
    hub=("nelorth/oxford-flowers", "dpdl-benchmark/oxford_flowers102"),
)
