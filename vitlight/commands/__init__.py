"""The commands that have no package of their own: parsers built with argparse alone, and what they call."""
