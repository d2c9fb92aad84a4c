"""Data: samples, embedded domains, your own files, four-option multiple choice, hold-out, captions."""
