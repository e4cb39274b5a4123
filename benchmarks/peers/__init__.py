"""The contenders of the data-loading benchmark, one a module, each run by the Python of its own environment.

A module has
  SETTINGS: what was set, in one line;
  DISTRIBUTIONS: the installed packages whose versions matter;
  prepare(case): optional; writes the module's own format once, from the same encoded bytes;
  batches(case): endless uint8 batches (B, C, S, S) or (B, S, S, C) from two processes or threads;
  stage_seconds(case): seconds per image of each stage on one core, by name;
  or, for a bound, rate(case, seconds): images counted and seconds taken, in place of batches.
They import neither vitlight (but for its own module) nor each other.
"""
