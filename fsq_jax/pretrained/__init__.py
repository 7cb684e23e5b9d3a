"""Published weights: readers of other people's files, and networks that are ready to use."""
