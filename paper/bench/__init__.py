"""Speed, memory and FLOPs at the paper's sizes (`python -m paper bench`), with random weights."""
