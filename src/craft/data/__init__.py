"""Data: samples, embedded domains, your own files, four-option multiple choice, hold-out, captions."""

from craft.data.captions import class_text, declarative
from craft.data.check import verify_images
from craft.data.choices import DIRECTIVES, QUESTION, multiple_choice
from craft.data.domains import APPAREL_WORDS, DIGIT_WORDS, EMBEDDED, catalogue
from craft.data.holdout import held_out_classes, stratified
from craft.data.images import ImageSource, open_image
from craft.data.load import load_data
from craft.data.sample import LETTERS, Data, Sample
from craft.data.sheet import contact_sheet

__all__ = [
    "APPAREL_WORDS",
    "DIGIT_WORDS",
    "DIRECTIVES",
    "EMBEDDED",
    "LETTERS",
    "QUESTION",
    "Data",
    "ImageSource",
    "Sample",
    "catalogue",
    "class_text",
    "contact_sheet",
    "declarative",
    "held_out_classes",
    "load_data",
    "multiple_choice",
    "open_image",
    "stratified",
    "verify_images",
]
