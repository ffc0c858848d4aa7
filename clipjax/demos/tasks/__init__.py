"""What the demonstrations train on: real text and real digits."""
