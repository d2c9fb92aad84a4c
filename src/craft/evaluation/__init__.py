"""Answers to questions, how they are marked, accuracy with intervals, and comparisons of runs."""
