"""Speed, memory and FLOPs at the paper's sizes (`craft bench`), with random weights."""
