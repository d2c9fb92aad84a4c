"""Readers of your own data: class folders, tables of rows, and data sets of the Hugging Face hub."""
