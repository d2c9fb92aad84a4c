"""The ten benchmarks of the paper (§4.1, §11). `--root` names the folder of your copy."""

from craft.data.benchmarks import pictures, questions
from craft.data.benchmarks.base import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        questions.ICONQA,
        questions.OCR_VQA,
        questions.SCIENCEQA,
        questions.VQA_RAD,
        pictures.EUROSAT,
        pictures.FLOWERS102,
        pictures.KVASIR,
        pictures.PLANT_VILLAGE,
        pictures.STANFORD_CARS,
        pictures.STANFORD_DOGS,
    )
}
"""Every benchmark by name, in the order of the paper's Table 1."""
