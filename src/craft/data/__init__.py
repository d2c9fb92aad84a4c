"""Data: samples, embedded domains, your own files, four-option multiple choice, hold-out, captions."""

from craft.data.benchmarks import BENCHMARKS
from craft.data.captions import class_text, declarative
from craft.data.check import Finding, check_data, verify_images
from craft.data.choices import DIRECTIVES, QUESTION, multiple_choice
from craft.data.domains.embedded import APPAREL_WORDS, DIGIT_WORDS, EMBEDDED, SKETCH_WORDS, catalogue
from craft.data.domains.scenes import draw_scenes
from craft.data.images import ImageSource, image_key, open_image
from craft.data.load import load_data, read_data
from craft.data.prepare import Wanted, prepare
from craft.data.sample import LETTERS, Data, Sample
from craft.data.splits import held_out_classes, stratified
from craft.data.stats import contact_sheet, data_stats, draw_stats, showcase

__all__ = [
    "APPAREL_WORDS",
    "BENCHMARKS",
    "DIGIT_WORDS",
    "DIRECTIVES",
    "EMBEDDED",
    "LETTERS",
    "QUESTION",
    "SKETCH_WORDS",
    "Data",
    "Finding",
    "ImageSource",
    "Sample",
    "Wanted",
    "catalogue",
    "check_data",
    "class_text",
    "contact_sheet",
    "data_stats",
    "declarative",
    "draw_scenes",
    "draw_stats",
    "held_out_classes",
    "image_key",
    "load_data",
    "multiple_choice",
    "open_image",
    "prepare",
    "read_data",
    "showcase",
    "stratified",
    "verify_images",
]
