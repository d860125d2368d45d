"""One module for each library that models come from; none is imported before a model needs it."""
