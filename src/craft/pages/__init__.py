"""What is drawn or written as a page: the transfer matrix, the demo's figure, code maps and the report."""
