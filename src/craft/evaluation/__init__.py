"""Floor 4: answers, matching, figures with intervals, comparisons."""
