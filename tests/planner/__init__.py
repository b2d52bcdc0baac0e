"""What the planner predicts, and how it is held against what was published."""
