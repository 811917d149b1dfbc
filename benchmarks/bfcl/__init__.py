"""Tool calls of local models on the Berkeley Function Calling Leaderboard's single-turn sets."""
