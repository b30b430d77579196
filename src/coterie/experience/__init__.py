"""Phase 1 to look into: the stored rollouts of runs, filtered, summed up, asked in SQL, exported."""
