"""One capture on disk: plan, blocks, commits, statistics, and its reader."""
