"""What a run learns: each lesson decides which parameters train, and by which objective."""
