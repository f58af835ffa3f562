"""What runs in another process than the step that asked for it: the work as data, and the way its messages travel back."""
