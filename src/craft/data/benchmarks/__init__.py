"""The ten benchmarks of the paper (§4.1, §11), one file each. `--root` names the folder of your copy."""

from craft.data.benchmarks.base import Benchmark
from craft.data.benchmarks.eurosat import EUROSAT
from craft.data.benchmarks.flowers102 import FLOWERS102
from craft.data.benchmarks.iconqa import ICONQA
from craft.data.benchmarks.kvasir import KVASIR
from craft.data.benchmarks.ocr_vqa import OCR_VQA
from craft.data.benchmarks.plant_village import PLANT_VILLAGE
from craft.data.benchmarks.scienceqa import SCIENCEQA
from craft.data.benchmarks.stanford_cars import STANFORD_CARS
from craft.data.benchmarks.stanford_dogs import STANFORD_DOGS
from craft.data.benchmarks.vqa_rad import VQA_RAD

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        ICONQA,
        OCR_VQA,
        SCIENCEQA,
        VQA_RAD,
        EUROSAT,
        FLOWERS102,
        KVASIR,
        PLANT_VILLAGE,
        STANFORD_CARS,
        STANFORD_DOGS,
    )
}
"""Every benchmark by name, in the order of the paper's Table 1."""
