"""How good a classifier is and when it may answer: calibration, evaluation, overlap, leaderboard, decision. Free of Dagster."""
